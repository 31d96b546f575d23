//! What a score means: the declared band that it lies in.

use std::sync::Arc;

/// Scores up to `below`, exclusive; the last band has no bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Band {
    pub below: Option<f64>,
    pub code: String,
    pub action: String,
}

/// The declared bands of a version, in rising order.
#[derive(Clone, Debug)]
pub struct Bands(Vec<Arc<Band>>);

impl Bands {
    /// None unless the last band, and only that, has no bound.
    pub fn new(bands: Vec<Band>) -> Option<Self> {
        let (last, bounded) = bands.split_last()?;
        let is_whole = last.below.is_none() && bounded.iter().all(|band| band.below.is_some());
        is_whole.then(|| Bands(bands.into_iter().map(Arc::new).collect()))
    }

    /// The band of a score.
    pub fn of(&self, score: f64) -> &Arc<Band> {
        let is_in = |band: &&Arc<Band>| band.below.is_none_or(|below| score < below);
        self.0
            .iter()
            .find(is_in)
            .expect("the last one has no bound")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn band(below: Option<f64>, code: &str) -> Band {
        Band {
            below,
            code: code.into(),
            action: "act".into(),
        }
    }

    #[test]
    fn a_score_lies_below_the_first_bound_that_it_does_not_reach() {
        let bounds = [(Some(0.2), "LOW"), (Some(0.6), "MIDDLE"), (None, "HIGH")];
        let bands = Bands::new(bounds.map(|(below, code)| band(below, code)).into()).unwrap();
        let scores = [-1.0, 0.199, 0.2, 0.6, f64::INFINITY];
        let codes = scores.map(|score| bands.of(score).code.as_str());
        assert_eq!(codes, ["LOW", "LOW", "MIDDLE", "HIGH", "HIGH"]);
    }

    #[test]
    fn the_last_band_alone_has_no_bound() {
        assert!(Bands::new(vec![]).is_none());
        assert!(Bands::new(vec![band(Some(0.5), "A")]).is_none());
        assert!(Bands::new(vec![band(None, "A"), band(None, "B")]).is_none());
    }
}
