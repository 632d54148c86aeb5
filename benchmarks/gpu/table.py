"""How rows of a GPU are shown."""

from musiclm_deploy.runtime.bench.record import Row
from musiclm_deploy.runtime.bench.table import MODEL, SIZE, Section, field, number, share


def _over_stated(row: Row) -> str:
    """What a stage took over what it says it takes; small stages can take nothing new of a page that is there."""
    return f"{row['taken_mb'] / row['stated_mb']:.2f}" if row["stated_mb"] else "–"


_GPU, _WHERE = ("GPU", field("gpu")), (("form", field("form")), ("stage", field("stage")))
_ROWS = ("rows", field("rows")), ("context", field("context"))
SECTIONS = (
    Section(
        "Tokens of a GPU that are the CPU's after the same tokens, and the memory that a stage takes there",
        "gpu tokens",
        (*SIZE, "gpu", "form", "stage"),
        (
            *(*MODEL, _GPU, *_WHERE),
            *(("longest run", field("longest")), ("equal", field("equal")), ("of", field("tokens"))),
            ("logits differ", number("logits_differ_by", "{:.0e}")),
            *(("stated MB", number("stated_mb")), ("taken MB", number("taken_mb")), ("taken over stated, at most 1.2", _over_stated)),
        ),
    ),
    Section(
        "One step on a GPU: token in, token out",
        "gpu step",
        (*SIZE, "gpu", "form", "stage", "rows", "context"),
        (
            *(*MODEL, _GPU, *_WHERE, *_ROWS),
            *(("MB read", number("mb_read")), ("GB/s", number("gb_per_s")), ("step µs", field("step_us")), ("host µs", field("host_us"))),
            ("of the ceiling", number("ceiling_share", "{:.0%}")),
        ),
    ),
    Section(
        "Whole clips on a GPU, and the share of each stage",
        "gpu clip",
        (*SIZE, "gpu", "form", "seconds", "cond_scale", "fine_window", "steps"),
        (
            *(*MODEL, _GPU, ("steps", field("steps")), ("clips", field("form")), ("s each", field("seconds"))),
            *(("guidance", field("cond_scale")), ("fine window", field("fine_window"))),
            *(("real-time factor (made)", number("real_time_factor_made")), ("median ms", number("median_ms"))),
            *((stage, share(stage)) for stage in ("mulan", "semantic", "coarse", "fine", "codec")),
        ),
    ),
    Section(
        "From a wave to MuLaN's patches on a GPU",
        "gpu patches",
        ("gpu", "form", "spectrogram", "seconds"),
        (
            *(_GPU, ("spectrogram", field("spectrogram")), ("form", field("form")), ("seconds", field("seconds"))),
            *(("MB", field("megabytes")), ("µs", field("us")), ("kernel's error", number("error", "{:.0e}"))),
        ),
    ),
    Section(
        "MuLaN and the codec on a GPU against the CPU",
        "gpu graphs",
        ("size", "gpu", "form"),
        (("size", field("size")), _GPU, ("what", field("form")), ("differs by", number("error", "{:.0e}"))),
    ),
)
