"""What clients send, checked: our own fields, which have the names of `generate`'s arguments, beside those of other interfaces.

An unknown field is refused, and so is a known one that nothing here can do, such as a voice's speed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..runtime.bundle import STAGES
from .errors import Refusal

# JSON has one kind of number: 3.0 is a whole one as well.
Whole = Annotated[int, BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)]
Seed = Annotated[Whole, Field(ge=0, lt=2**64)]
Text = Annotated[str, Field(pattern=r"\S", description="a text that is more than white space")]
FormatName = Literal["wav", "pcm", "flac", "opus", "mp3"]
StreamFormat = Literal["audio", "sse"]
Stage = Literal["semantic", "coarse", "fine"]
assert Stage.__args__ == STAGES
_SHOWN = 200  # characters of a value in a message


class Strict(BaseModel):
    """An object without other fields than its own, whose numbers are numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Sampling(Strict):
    """How the tokens of a stage are drawn."""

    temperature: float | None = Field(None, ge=0)
    filter_thres: float | None = Field(None, ge=0, lt=1)
    cond_scale: float | None = None


class Window(Strict):
    """The frames of a stage's windows, and how many of them a window shares with the one before it."""

    length: Whole = Field(ge=1)
    overlap: Whole | None = Field(None, ge=0)


class Sound(Strict):
    """A sound file in base64: wav, flac, ogg, opus or mp3."""

    data: str = Field(description="the file's bytes in base64")


class Part(Strict):
    """A part of a mixed prompt: a text or a sound, and its weight."""

    text: Text | None = None
    audio: Sound | None = None
    weight: float = 1.0


class Ours(Strict):
    """The settings of `generate`, in every interface."""

    seconds: float | None = Field(None, gt=0, description="length of the clip; by default the model's longest window")
    seed: Seed = 0
    num_samples: Whole = Field(1, ge=1, description="candidates, of which the one closest to the prompt is returned")
    stop: Literal["exact", "eos"] = "exact"
    plan: Literal["trained", "low_latency"] | None = Field(None, description="by default low_latency for a stream, trained otherwise")
    first_window_s: float | None = Field(None, ge=0.01)
    window_growth: float | None = Field(None, ge=1.1)
    max_semantic_tokens: Whole | None = Field(None, ge=1)
    sampling: dict[Stage, Sampling] | None = None
    windows: dict[Stage, Window] | None = None
    include_prime: bool = True
    audio: Sound | None = Field(None, description="a sound that the music should be like, in place of a text")
    prime: Sound | None = Field(None, description="a sound that the music goes on from")
    sample_rate: Whole | None = Field(None, ge=8000, le=192_000, description="Hz, of the answer; by default the model's")
    deadline_s: float | None = Field(None, ge=1, description="seconds after which the request is given up")


class JobBody(Ours):
    """A request that is made in the background."""

    model: str | None = None
    prompt: Text | list[Part] | None = Field(None, description="what the music should be like: a text, or texts and sounds with weights")


class Generation(JobBody):
    """A request of our own interface."""

    response_format: FormatName = "wav"
    stream: bool = Field(True, description="send the sound while it is made")
    stream_format: StreamFormat = "audio"
    normalize: float | None = Field(None, gt=-70, le=0, description="loudness of a whole sound in LUFS (ITU-R BS.1770)")


class Speech(Ours):
    """A request of OpenAI's interface for speech. `input` is the prompt, `instructions` add to it; `voice` is not used."""

    model: str | None = None
    input: Text
    voice: str | dict[str, Any] | None = None
    instructions: str | None = None
    response_format: Literal["wav", "pcm", "flac", "opus", "mp3", "aac"] = "mp3"
    speed: float = Field(1.0, description="1: nothing else can be done")
    stream_format: StreamFormat = "audio"


class Music(Ours):
    """A request of ElevenLabs' interface for music."""

    prompt: Text | None = None
    composition_plan: dict[str, Any] | None = Field(None, description="cannot be followed")
    music_length_ms: Whole | None = Field(None, ge=1)
    model_id: str | None = None
    force_instrumental: bool | None = Field(None, description="all music here is instrumental or not as its model is")
    respect_sections_durations: bool | None = None
    store_for_inpainting: bool | None = None
    sign_with_c2pa: bool | None = None


class Fault(BaseModel):
    """What a refusal says."""

    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str


class Refused(BaseModel):
    """The answer to a request that is refused."""

    error: Fault


class Detail(BaseModel):
    """What a refusal says in ElevenLabs' form."""

    status: str
    message: str
    param: str | None
    request_id: str


class RefusedMusic(BaseModel):
    """The answer to a request that is refused, in ElevenLabs' form."""

    detail: Detail


class Latents(Strict):
    """Texts or sounds whose latents in MuLaN's space are wanted."""

    model: str | None = None
    input: Text | list[Text] | None = None
    audio: list[Sound] | None = None
    encoding_format: Literal["float", "base64"] = "float"


def refusal_of(error: ValidationError | RequestValidationError) -> Refusal:
    """Return the refusal of a body by the first of its faults."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"] if part not in ("body", "query", "path")) or None
    got = repr(fault.get("input"))
    told = "is not a field here" if fault["type"] == "extra_forbidden" else fault["msg"]
    shown = f"{where or 'the body'}: {told}, got {got if len(got) <= _SHOWN else f'{got[:_SHOWN]}...'}."
    return Refusal(400, shown, where, "invalid_value")
