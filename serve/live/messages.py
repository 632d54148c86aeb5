"""The messages of `/v1/live`, the live interface of our own: what a client may send, and what it gets.

Text frames are these, as JSON, told apart by `type`. Binary frames go from the server to the client alone: eight bytes, the number of the
first sample in the session as an unsigned little-endian integer, then samples as little-endian 16 bits, one channel. `/v1/live/schema.json`
is made from this file, and `live.d.ts` from that.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from ..bodies import Part, Sampling, Seed, Stage, Strict, Whole

Sample = Annotated[Whole, Field(ge=0, lt=2**53)]  # JavaScript's numbers are exact below
State = Literal["stopped", "playing", "paused", "ended"]
Prompts = Annotated[list[Part], Field(min_length=1, description="texts and sounds, each with a weight; the music is like their blend")]


class Setup(Strict):
    """The first message: begins a session, or goes on with one."""

    type: Literal["setup"]
    key: str | None = Field(None, description="for browsers, which can set no header: as after `Authorization: Bearer`")
    model: str | None = Field(None, description="by default the server's first one")
    session: str | None = Field(None, description="of `ready`, to go on with a session whose connection was cut")
    from_sample: Sample | None = Field(None, description="the first sample that is wanted again, when a session is gone on with")
    lead_s: float = Field(1.0, ge=0.1, le=10, description="seconds that are sent before they are played")
    step_s: float = Field(1.0, ge=0.2, le=30, description="seconds that have one prompt: fewer react sooner, and cost more")
    seed: Seed = 0


class SetPrompts(Strict):
    """Sets what the music is like from now on."""

    type: Literal["prompts"]
    prompts: Prompts


class SetConfig(Strict):
    """Sets how tokens are drawn from now on; what is left out stays as it is."""

    type: Literal["config"]
    sampling: dict[Stage, Sampling] | None = None
    seed: Seed | None = Field(None, description="holds from the next play after stop, or from reset, on")


class Play(Strict):
    """Begin, or go on after a pause."""

    type: Literal["play"]


class Pause(Strict):
    """Send nothing more; what comes next is kept."""

    type: Literal["pause"]


class Stop(Strict):
    """End the music; the next play begins anew."""

    type: Literal["stop"]


class Reset(Strict):
    """Begin anew with the prompts and settings of now, without a pause."""

    type: Literal["reset"]


class Played(Strict):
    """Says how far the client has played; without this message a client is taken to play as time passes."""

    type: Literal["played"]
    sample: Sample


class Record(Strict):
    """Keep what is heard from a sample on, as a file."""

    type: Literal["record"]
    format: Literal["wav", "flac", "opus"] = "flac"
    from_sample: Sample | None = Field(None, description="of the last seconds; by default the next one that is sent")


class EndRecord(Strict):
    """End the file."""

    type: Literal["end_record"]
    to_sample: Sample | None = Field(None, description="one past the last; by default all that was sent")


ClientMessage = Annotated[
    Setup | SetPrompts | SetConfig | Play | Pause | Stop | Reset | Played | Record | EndRecord, Field(discriminator="type")
]


class Ready(Strict):
    """The answer to `setup`."""

    type: Literal["ready"] = "ready"
    session: str
    resumed: bool = Field(description="whether the session was there already")
    model: str
    bundle_sha256: str
    sample_rate: int = Field(description="Hz, by which samples are counted")
    state: State
    next_sample: Sample = Field(description="the first that is sent next")
    seed: Seed
    prompts: list[Part]


class StateChanged(Strict):
    """The session plays, pauses, or has stopped."""

    type: Literal["state"] = "state"
    state: State
    sample: Sample = Field(description="the first that it is true of")
    reason: str | None = Field(None, description="why, where the client did not ask for it")


class Changed(Strict):
    """The answer to `prompts` and `config`: from when on the change is heard."""

    type: Literal["changed"] = "changed"
    sample: Sample = Field(description="the first that sounds otherwise")
    in_s: float = Field(description="seconds until it is heard")


class Status(Strict):
    """Once a second while it plays."""

    type: Literal["status"] = "status"
    sent: Sample = Field(description="one past the last sample that was sent")
    made_s: float = Field(description="seconds that are made and not sent")
    change_in_s: float = Field(description="seconds in which a change would be heard now, about")
    underruns: int = Field(description="how often samples came too late, by the server's count")


class Warned(Strict):
    """Something was not done, and all else was."""

    type: Literal["warning"] = "warning"
    message: str
    param: str | None = None


class Recorded(Strict):
    """A file is complete."""

    type: Literal["recorded"] = "recorded"
    url: str = Field(description="where it can be fetched, for an hour by default")
    format: str
    from_sample: Sample
    seconds: float
    pcm_sha256: str = Field(description="of its samples as little-endian 16 bits")


class Fault(Strict):
    """Why something failed."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_s: float | None = Field(None, description="after which the same may be asked again; null: never as it is")


class Failed(Strict):
    """A message was refused, or the session has ended."""

    type: Literal["error"] = "error"
    error: Fault
    final: bool = Field(description="whether the connection is closed now")


ServerMessage = Annotated[Ready | StateChanged | Changed | Status | Warned | Recorded | Failed, Field(discriminator="type")]

CLIENT: TypeAdapter[Any] = TypeAdapter(ClientMessage)


def catalogue() -> dict[str, Any]:
    """Return the JSON Schema of all messages."""
    definitions: dict[str, Any] = {}
    for name, side in (("ClientMessage", CLIENT), ("ServerMessage", TypeAdapter[Any](ServerMessage))):
        own = side.json_schema(ref_template="#/$defs/{model}")
        definitions |= own.pop("$defs")
        definitions[name] = own
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "LiveMessage",
        "description": "The messages of /v1/live: JSON in text frames.",
        "anyOf": [{"$ref": "#/$defs/ClientMessage"}, {"$ref": "#/$defs/ServerMessage"}],
        "$defs": definitions,
    }
