"""What clients send, checked: our own fields, which have the names of `generate`'s arguments, beside those of other interfaces.

An unknown field is refused, and so is a known one that nothing here can do, such as a voice's speed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..runtime.bundle import STAGES

Seed = Annotated[int, Field(ge=0, lt=2**64)]
FormatName = Literal["wav", "pcm", "flac", "opus", "mp3"]
StreamFormat = Literal["audio", "sse"]
Stage = Literal["semantic", "coarse", "fine"]
assert Stage.__args__ == STAGES


class Strict(BaseModel):
    """An object without other fields than its own, whose numbers are numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Sampling(Strict):
    """How the tokens of a stage are drawn."""

    temperature: float | None = None
    filter_thres: float | None = None
    cond_scale: float | None = None


class Window(Strict):
    """The frames of a stage's windows, and how many of them a window shares with the one before it."""

    length: int
    overlap: int | None = None


class Sound(Strict):
    """A sound file in base64: wav, flac, ogg, opus or mp3."""

    data: str = Field(description="the file's bytes in base64")


class Part(Strict):
    """A part of a mixed prompt: a text or a sound, and its weight."""

    text: str | None = None
    audio: Sound | None = None
    weight: float = 1.0


class Ours(Strict):
    """The settings of `generate`, in every interface."""

    seconds: float | None = Field(None, gt=0, description="length of the clip; by default the model's longest window")
    seed: Seed = 0
    num_samples: int = Field(1, ge=1, description="candidates, of which the one closest to the prompt is returned")
    stop: Literal["exact", "eos"] = "exact"
    plan: Literal["trained", "low_latency"] | None = Field(None, description="by default low_latency for a stream, trained otherwise")
    first_window_s: float | None = None
    window_growth: float | None = None
    max_semantic_tokens: int | None = Field(None, ge=1)
    sampling: dict[Stage, Sampling] | None = None
    windows: dict[Stage, Window] | None = None
    include_prime: bool = True
    audio: Sound | None = Field(None, description="a sound that the music should be like, in place of a text")
    prime: Sound | None = Field(None, description="a sound that the music goes on from")
    sample_rate: int | None = Field(None, ge=8000, le=192_000, description="Hz, of the answer; by default the model's")
    deadline_s: float | None = Field(None, gt=0, description="seconds after which the request is given up")


class Generation(Ours):
    """A request of our own interface."""

    model: str | None = None
    prompt: str | list[Part] | None = Field(None, description="what the music should be like: a text, or texts and sounds with weights")
    response_format: FormatName = "wav"
    stream: bool = Field(True, description="send the sound while it is made")
    stream_format: StreamFormat = "audio"


class Speech(Ours):
    """A request of OpenAI's interface for speech. `input` is the prompt, `instructions` add to it; `voice` is not used."""

    model: str | None = None
    input: str
    voice: str | dict[str, Any] | None = None
    instructions: str | None = None
    response_format: Literal["wav", "pcm", "flac", "opus", "mp3", "aac"] = "mp3"
    speed: float = Field(1.0, description="1: nothing else can be done")
    stream_format: StreamFormat = "audio"


class Music(Ours):
    """A request of ElevenLabs' interface for music."""

    prompt: str | None = None
    composition_plan: dict[str, Any] | None = Field(None, description="cannot be followed")
    music_length_ms: int | None = Field(None, ge=1)
    model_id: str | None = None
    force_instrumental: bool | None = Field(None, description="all music here is instrumental or not as its model is")
    respect_sections_durations: bool | None = None
    store_for_inpainting: bool | None = None
    sign_with_c2pa: bool | None = None


class JobBody(Generation):
    """A request that is made in the background."""

    stream: Literal[False] = False


class Latents(Strict):
    """Texts or sounds whose latents in MuLaN's space are wanted."""

    model: str | None = None
    input: str | list[str] | None = None
    audio: list[Sound] | None = None
    encoding_format: Literal["float", "base64"] = "float"
