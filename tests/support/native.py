"""The forms of the native step that this processor runs, or the reason why there is none."""

from musiclm_deploy.kernels import decoder_step

try:
    PATHS, MISSING = decoder_step.paths(), ""
except decoder_step.Unavailable as missing:  # no compiler here
    PATHS, MISSING = ["portable"], str(missing)
