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
