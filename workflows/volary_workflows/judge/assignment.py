"""Whether units arrived in the declared shares: a sample-ratio test under any number of looks.

The next unit goes to arm i with the known probability s_i, independently of everything before.
Mixed over a Dirichlet(k s) prior of other probabilities, the likelihood ratio of the counts n_i
against s is, with n = sum n_i,

    E = Gamma(k) / Gamma(k + n)  prod_i Gamma(k s_i + n_i) / (Gamma(k s_i) s_i^n_i),

a martingale of mean 1 under s, so P(sup E >= 1/alpha) <= alpha (Ville 1939; Lindon and Malek,
"Anytime-valid inference for multinomial count data", NeurIPS 2022, section 3). A large k believes
in small deviations and needs many units to show them, a small one in large deviations; the mean
over several k is an e-process again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from volary_workflows.judge.evidence import log_mean

CONCENTRATIONS = (10.0, 100.0, 1_000.0, 10_000.0)
UNIFORM = np.full(len(CONCENTRATIONS), 1 / len(CONCENTRATIONS))


def log_sample_ratio(counts: Sequence[float], shares: Sequence[float]) -> float:
    """Return the log evidence against "units are drawn with these shares"; shares are above 0."""
    logs = [_log_mixture(counts, shares, k) for k in CONCENTRATIONS]
    return float(log_mean(np.array(logs), UNIFORM))


def _log_mixture(counts: Sequence[float], shares: Sequence[float], k: float) -> float:
    log = math.lgamma(k) - math.lgamma(k + sum(counts))
    for count, share in zip(counts, shares, strict=True):
        log += math.lgamma(k * share + count) - math.lgamma(k * share) - count * math.log(share)
    return log
