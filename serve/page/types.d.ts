/** Shapes of the data that several modules share, for checks and editors: this file is not sent to browsers. */

/** What a person asked for. */
export interface Settings {
  prompt: string;
  seconds: number;
  seed: number;
  candidates: number;
  /** null: the server's first one */
  model: string | null;
}

/** A sound file for a request. */
export interface Sound {
  /** what the page calls it */
  name: string;
  /** base64 */
  data: string;
}

/** The names of the sounds that a clip was made of. */
export interface Sources {
  /** that it should be like */
  reference: string | null;
  /** that it goes on from */
  prime: string | null;
}

/** A clip as the history keeps it, without its samples. */
export interface Clip extends Sources {
  /** of the history's own */
  id: string;
  /** milliseconds since 1970 */
  created: number;
  settings: Settings;
  /** Hz */
  rate: number;
  samples: number;
  /** of the server, which forgets it after a while */
  job: string;
  candidate: number;
  /** SHA-256 */
  bundle: string;
  /** integrated loudness */
  lufs: number;
  /** of equal parts of the clip, from 0 to 1, for its small picture */
  peaks: number[];
}

/** How a job stands, as `GET /v1/jobs/ID` says it. */
export interface Job {
  id: string;
  state: "queued" | "running" | "done" | "failed" | "cancelled" | "cut";
  model: string;
  seed: number;
  position: number | null;
  progress: Record<string, { done: number; total: number }>;
  best?: number;
  scores?: (number | null)[];
  error?: { message: string; code: string | null };
}

/** A model, as `GET /v1/models` describes it. */
export interface Model {
  id: string;
  sample_rate: number;
  bundle_sha256: string;
}

/** What the audio thread reports. */
export interface Transport {
  /** sample that is heard next */
  at: number;
  /** one past the last sample that is there */
  end: number;
  playing: boolean;
  /** whether it plays as soon as enough is there */
  waiting: boolean;
  underruns: number;
}

/** What made a clip, as the headers of its sound say. */
export interface Origin {
  job: string;
  /** Hz */
  rate: number;
  seed: number;
  /** SHA-256 */
  bundle: string;
}

/** What is kept of a request over a reload of the page. */
export interface SavedTake extends Sources {
  settings: Settings;
  job: string;
}

/** What happens to a clip on its way. */
export interface TakeEvents {
  begun(origin: Origin): void;
  samples(more: Int16Array<ArrayBuffer>): void;
  progress(job: Job): void;
  /** why it waits, and for how many seconds; "" when that is over */
  waits(message: string, seconds: number): void;
  /** all are made, and can be fetched */
  candidates(job: Job): void;
}

/** A clip on the deck. */
export interface Side {
  title: string;
  samples: import("./samples.js").Samples;
  lufs: number;
}

/** What a person can do with the deck. */
export interface DeckActions {
  toggle(): void;
  choose(side: number): void;
  cancel(): void;
  /** share: of the picture's width */
  seek(share: number): void;
  skip(seconds: number): void;
}

/** A column of a picture. */
export interface Column {
  index: number;
  /** of the wave, from -1 to 1 */
  low: number;
  high: number;
  /** RGBA from the highest pitch down */
  colours: Uint8ClampedArray;
}

/** A part of a blend. */
export interface Prompt {
  text: string;
  weight: number;
}

/** A message of `/v1/live`; `type` says which of the fields of serve/live/messages.py it has. */
export type Message = { type: string } & Record<string, any>;

/** Why something failed on `/v1/live`. */
export interface Fault {
  message: string;
  code: string | null;
  retry_s: number | null;
}

/** What happens in a live session. */
export interface LiveEvents {
  message(message: Message): void;
  /** start: number of the first sample */
  samples(start: number, samples: Int16Array): void;
  /** the connection was; seconds until the next attempt; why: in the server's words, "" if it said nothing */
  cut(seconds: number, why: string): void;
  /** the session cannot go on */
  ended(fault: Fault): void;
}

/** What is kept of a live session over a reload of the page. */
export interface SavedSession {
  session: string;
  played: number;
  prompts: Prompt[];
}
