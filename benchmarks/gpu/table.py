"""How rows of a GPU are shown."""

from musiclm_deploy.runtime.bench.table import MODEL, SIZE, Section, field, number

_WHERE = ("GPU", field("gpu")), ("form", field("form")), ("stage", field("stage"))
_ROWS = ("rows", field("rows")), ("context", field("context"))
SECTIONS = (
    Section(
        "Tokens of a GPU that are the CPU's after the same tokens, and the memory that a stage takes there",
        "gpu tokens",
        (*SIZE, "gpu", "form", "stage"),
        (
            *(*MODEL, *_WHERE),
            *(("equal", field("equal")), ("of", field("tokens"))),
            *(("stated MB", number("stated_mb")), ("taken MB", number("taken_mb"))),
        ),
    ),
    Section(
        "One step on a GPU: token in, token out",
        "gpu step",
        (*SIZE, "gpu", "form", "stage", "rows", "context"),
        (
            *(*MODEL, *_WHERE, *_ROWS),
            *(("MB read", number("mb_read")), ("GB/s", number("gb_per_s")), ("step µs", field("step_us")), ("host µs", field("host_us"))),
            ("of the ceiling", number("ceiling_share", "{:.0%}")),
        ),
    ),
    Section(
        "From a wave to MuLaN's patches on a GPU",
        "gpu patches",
        ("gpu", "form", "seconds"),
        (
            *(("GPU", field("gpu")), ("form", field("form")), ("seconds", field("seconds"))),
            *(("MB", field("megabytes")), ("µs", field("us")), ("kernel's error", number("error", "{:.0e}"))),
        ),
    ),
)
