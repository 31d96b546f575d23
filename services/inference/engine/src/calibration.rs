//! What share of rows with a score were positive: straight lines between declared points.

/// Probabilities by score, as `numpy.interp` reads them: with the same bits, in the same order of
/// operations. Scores rise; both have one entry a point, and there is at least one.
#[derive(Clone, Debug)]
pub struct Calibration {
    pub scores: Vec<f64>,
    pub probabilities: Vec<f64>,
}

impl Calibration {
    /// None for lists that are not paired or do not rise.
    pub fn new(scores: Vec<f64>, probabilities: Vec<f64>) -> Option<Self> {
        let is_paired = scores.len() == probabilities.len() && !scores.is_empty();
        let is_rising = scores.windows(2).all(|pair| pair[0] < pair[1]);
        (is_paired && is_rising).then_some(Calibration {
            scores,
            probabilities,
        })
    }

    pub fn probability(&self, score: f64) -> f64 {
        let (xs, ys) = (&self.scores, &self.probabilities);
        if score.is_nan() {
            return score;
        }
        let Some(place) = xs.partition_point(|x| *x <= score).checked_sub(1) else {
            return ys[0];
        };
        if place + 1 == xs.len() || xs[place] == score {
            return ys[place];
        }
        let slope = (ys[place + 1] - ys[place]) / (xs[place + 1] - xs[place]);
        slope * (score - xs[place]) + ys[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_run_between_the_points_and_stay_level_beyond() {
        let found = Calibration::new(vec![0.0, 0.5, 1.0], vec![0.1, 0.2, 1.0]).unwrap();
        let of = |scores: [f64; 6]| scores.map(|score| found.probability(score));
        assert_eq!(
            of([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0]),
            [0.1, 0.1, 0.15000000000000002, 0.2, 1.0, 1.0]
        );
        assert!(found.probability(f64::NAN).is_nan());
        let single = Calibration::new(vec![0.5], vec![0.3]).unwrap();
        assert_eq!(single.probability(0.9), 0.3);
    }

    #[test]
    fn what_is_no_rising_list_is_none() {
        assert!(Calibration::new(vec![], vec![]).is_none());
        assert!(Calibration::new(vec![1.0], vec![]).is_none());
        assert!(Calibration::new(vec![1.0, 1.0], vec![0.0, 1.0]).is_none());
        assert!(Calibration::new(vec![0.0, f64::NAN], vec![0.0, 1.0]).is_none());
    }
}
