//! Election safety: at most one leader a term (Raft paper, figure 3).

use std::collections::BTreeMap;

use super::{Checked, violated};

/// Who led which term.
#[derive(Debug, Default)]
pub struct Elections {
    leaders: BTreeMap<u64, u64>,
}

impl Elections {
    /// `node` leads `term`.
    ///
    /// # Errors
    /// Another node led it, or leads it.
    pub fn elected(&mut self, node: u64, term: u64) -> Checked {
        match self.leaders.insert(term, node) {
            Some(other) if other != node => violated(
                "election safety",
                format!("nodes {other} and {node} both lead term {term}"),
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leaders_of_one_term_are_seen() {
        let mut elections = Elections::default();
        elections.elected(1, 2).expect("the first");
        elections.elected(2, 3).expect("another term");
        elections.elected(2, 2).expect_err("the second of term 2");
    }
}
