#!/usr/bin/env python3
"""Reads a graven data directory, written from FORMAT.md alone: no code is shared with the log itself.

    read_log.py DATADIR

Prints one line an item, in order, without the superseded entries, and exits 1 when the log is damaged:

    record INDEX TERM OFFSET LENGTH SHA256     each record
    control INDEX TERM KIND                    each other entry
    hard-state TERM VOTE                       the last one; vote 0 = none

CRCs are checked, chain values (XXH3) are not: Python has no XXH3 of its own.
"""

import hashlib
import os
import struct
import sys
import zlib

FRAME, HARD_STATE, SYNC_POINT, RESET, FOOTER, TRAILER = range(1, 7)
BLOCK = 4096


def fail(what):
    sys.exit(f"damaged: {what}")


def up(number, to):
    return -(-number // to) * to


def opening_of(data):
    """Segment id, salt, base index and hard state; None when the segment was never begun."""
    block = data[:BLOCK]
    if len(block) < BLOCK or block[:8] != b"GRVNSEG\0" or zlib.crc32(block[:-4]) != struct.unpack("<I", block[-4:])[0]:
        return None
    version, features, segment, salt = struct.unpack_from("<IIQQ", block, 8)
    if version != 1 or features:
        sys.exit(f"newer: segment version {version}, features {features:#x}")
    return segment, salt, struct.unpack_from("<Q", block, 96)[0], struct.unpack_from("<QQ", block, 80)


def prefix_at(data, at, segment, salt):
    """Kind, copy, frame field, payload CRC and length of the record at `at`; None when none of this life starts there."""
    raw = data[at : at + 64]
    if len(raw) < 64 or raw[:4] != b"GRVR" or zlib.crc32(raw[:60]) != struct.unpack("<I", raw[60:])[0]:
        return None
    kind, copy = raw[4], raw[5]
    record_salt, record_segment, position, _watermark, _commit = struct.unpack_from("<5Q", raw, 8)
    field, crc, length = struct.unpack_from("<3I", raw, 48)
    if (record_salt, record_segment, position) != (salt, segment, at) or at + 64 + length > len(data):
        return None
    return kind, copy, field, crc, length


def record_at(data, at, segment, salt):
    """Kind, payload and end of the record at `at`; None when none is there."""
    found = prefix_at(data, at, segment, salt)
    if found:
        kind, copy, field, crc, length = found
        payload = data[at + 64 : at + 64 + length]
        summed = payload[96:] if kind == FRAME else payload
        head_right = kind != FRAME or (len(payload) >= 96 and payload[92:96] == struct.pack("<I", field))
        if copy == 0 and head_right and zlib.crc32(summed) == crc:
            end = up(at + 64 + length, 64)
            return kind, payload, up(end, BLOCK) + 128 if kind == HARD_STATE else end
    # Where the first copy of a hard state is broken the second one may be whole.
    second = up(at + 128, BLOCK)
    found = prefix_at(data, second, segment, salt)
    if found and found[:2] == (HARD_STATE, 1) and found[2] * 64 == at:
        payload = data[second + 64 : second + 128]
        if zlib.crc32(payload) == found[3]:
            return HARD_STATE, payload, second + 128
    return None


def frame_of(payload):
    """Index, term, kind, base offset and body of a frame."""
    head, body = payload[:96], payload[96:]
    magic, version, kind, _, _, required, _, length, _, term, index, offset = struct.unpack_from("<4s4B4I3Q", head)
    if magic != b"GRVF" or zlib.crc32(head[:92]) != struct.unpack("<I", head[92:])[0] or length != len(body):
        fail(f"frame header of entry {index}")
    if version != 1 or required:
        sys.exit(f"newer: frame version {version}, features {required:#x}")
    return index, term, kind, offset, body


def records_of(body):
    at = 0
    while at < len(body):
        size, count = struct.unpack_from("<II", body, at)
        inside, end = at + 64, at + size
        for _ in range(count):
            payload_len, meta_len = struct.unpack_from("<II", body, inside)
            inside += 8 + meta_len + payload_len
            yield body[inside - payload_len : inside]
        if inside != end:
            fail("a group's records do not fill it")
        at = end


def main(directory):
    names = sorted(name for name in os.listdir(directory) if len(name) == 20 and name.endswith(".seg"))
    entries, hard_state, last = {}, None, None
    for name in names:
        with open(os.path.join(directory, name), "rb") as file:
            data = file.read()
        opened, number = opening_of(data), int(name[:16], 16)
        if opened is None or opened[0] != number:
            continue  # Prepared: no opening yet, or that of an earlier life of the file.
        segment, salt, base, hard_state = opened
        if last is not None and base != last:
            fail(f"{name} goes on behind entry {base}, the one before ends at {last}")
        last, at = base, BLOCK
        while record := record_at(data, at, segment, salt):
            kind, payload, at = record
            if kind == FRAME:
                index, term, frame_kind, offset, body = frame_of(payload)
                entries = {there: entry for there, entry in entries.items() if there < index}
                entries[index], last = (term, frame_kind, offset, body), index
            elif kind == HARD_STATE:
                hard_state = struct.unpack_from("<QQ", payload)
            elif kind == RESET:
                entries, last = {}, struct.unpack_from("<Q", payload)[0]
            elif kind == FOOTER:
                break
    for index, (term, kind, offset, body) in sorted(entries.items()):
        if kind != 1:
            print("control", index, term, kind)
        for number, payload in enumerate(records_of(body) if kind == 1 else ()):
            print("record", index, term, offset + number, len(payload), hashlib.sha256(payload).hexdigest())
    print("hard-state", *(hard_state or (0, 0)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
