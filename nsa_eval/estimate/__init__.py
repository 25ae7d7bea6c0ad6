"""How long a run will take, and whether it fits: from what runs like it took, or from a short measurement."""

from nsa_eval.estimate._estimate import Estimate, JobEstimate, VariantEstimate, estimate
from nsa_eval.estimate._measure import Measurement, measure, measure_one
from nsa_eval.estimate._pace import Pace, Range
from nsa_eval.estimate._profile import (
    Profile,
    ProfilePoint,
    keep_profile,
    profile_of,
    profiles_folder,
    read_profiles,
    shape_of,
)
from nsa_eval.estimate._words import estimate_lines, time_range

__all__ = [
    "Estimate",
    "JobEstimate",
    "Measurement",
    "Pace",
    "Profile",
    "ProfilePoint",
    "Range",
    "VariantEstimate",
    "estimate",
    "estimate_lines",
    "keep_profile",
    "measure",
    "measure_one",
    "profile_of",
    "profiles_folder",
    "read_profiles",
    "shape_of",
    "time_range",
]
