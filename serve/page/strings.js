// @ts-check
/**
 * All words of the page. Another language is another file of this shape. Defaults of parameters say what they are; all are given.
 */

export const words = {
  title: "musiclm",
  volume: "Volume",
  footer: "Space plays and pauses, ← and → move by a second, Enter in the prompt makes music.",

  insecure: "Browsers give sound to pages of https and of this machine alone. Open this page over https, or on the machine that serves it.",

  tabs: { label: "Views", make: "Make", play: "Play", history: "History" },

  key: { label: "Key of this server", enter: "Use key", needed: "This server needs a key.", unknown: "This key is not known here." },

  /** @type {Record<string, string>} */
  stages: { prompt: "Prompt", semantic: "Melody and form", coarse: "Sound", fine: "Detail", codec: "Wave" },

  deck: {
    label: "Deck",
    empty: "What you make appears here.",
    nothing: "Nothing to play yet",
    position: "Position",
    play: "Play",
    pause: "Pause",
    cancel: "Cancel",
    loudness: "Integrated loudness of what is there (ITU-R BS.1770)",
    sides: "Which of the two clips is heard",
    hears: (title = "") => `Now: ${title}`,
    of: (now = "", total = "") => `${now} of ${total}`,
    queued: (place = 0) => (place === 1 ? "Next in the queue." : `Number ${place} in the queue.`),
  },

  form: {
    prompt: "What should it sound like?",
    example: "calm solo piano",
    seconds: "Seconds",
    seed: "Seed",
    dice: "Roll another seed",
    candidates: "Candidates",
    model: "Model",
    go: "Make music",
    anew: "Make anew",
    nothing: "Say in words what the music should be like, or give a sound.",
    goesOn: (name = "") => `Goes on from “${name}”. Seconds include it.`,
    removePrime: "Do not go on from this clip",
  },

  reference: {
    label: "Reference sound",
    choose: "Reference sound…",
    hint: "or drop a file here",
    record: "Record",
    stop: "Stop",
    remove: "Remove the reference sound",
    records: "Recording from the microphone.",
    recording: (time = "") => `Recording ${time}`,
    recorded: (time = "") => `microphone, ${time}`,
    unreadable: (name = "") => `${name} cannot be read as sound. Try a wav, flac, ogg or mp3 file.`,
    shortened: (seconds = 0) => `Only its first ${seconds} seconds are used.`,
    noMicrophone: "The microphone cannot be used. Allow it for this page, or choose a file.",
  },

  make: {
    candidates: "Candidates, the best first",
    candidate: (place = 0) => `Candidate ${place}`,
    score: "How close it is to the prompt, by the model’s own measure",
    begins: "Begins…",
    waits: "All candidates are made first, then compared.",
    done: "The clip is whole.",
    cancelled: "Cancelled.",
    resumed: "This clip was being made before the page was loaded again. Press play to hear it.",
    again: (message = "", seconds = 0) => `${message} Trying again in ${seconds} s.`,
    like: (name = "") => `like ${name}`,
    after: (name = "") => `on from ${name}`,
  },

  mixer: {
    first: "calm solo piano",
    second: "brass band",
    example: "another sound",
    words: "Prompt",
    weight: "Weight",
    add: "Add a prompt",
    remove: "Remove this prompt",
    removed: "Prompt removed.",
    nothing: "Write a prompt and move its slider up: there is nothing to play yet.",
  },

  play: {
    label: "Endless music",
    empty: "Music without end. Press play, then move the sliders.",
    play: "Play",
    pause: "Pause",
    stop: "Stop",
    reset: "Begin anew",
    resetTitle: "Begin the music anew, with the prompts of now",
    connects: "Connecting…",
    anew: "Begin anew with the same prompts",
    lost: "This session is over: the server was restarted, or it was too long ago.",
    resume: "Music was playing before the page was loaded again. Press play to go on.",
    heard: "The change is heard.",
    heardIn: (seconds = 0) => `Change heard in ${seconds.toFixed(1)} s`,
    cut: "The connection was cut. What is here plays on.",
    again: (seconds = 0) => (seconds ? `Trying again in ${seconds} s.` : "Trying again…"),
  },

  record: {
    title: "Recordings",
    begin: "Record",
    end: "End recording",
    format: "Format of recordings",
    records: "Recording.",
    ends: "The recording has ended.",
    ready: "The recording is ready.",
    download: (format = "", time = "") => `Download ${format}, ${time}`,
  },

  history: {
    hint: "Clips stay in this browser: the last 50, up to 200 MB. Choose one as A and another as B to compare them.",
    empty: "No clips yet.",
    closed: "This browser keeps nothing for this page, as in a private window: clips are gone when it is closed.",
    full: "There is no room for this clip in this browser. Delete some, or download it now.",
    gone: (count = 0) => `${count === 1 ? "The oldest clip" : `The ${count} oldest clips`} made room for this one.`,
    play: (title = "") => `Play ${title}`,
    side: (name = "") => `Compare as ${name}`,
    sideOf: (name = "", title = "") => `${name}: compare ${title}`,
    compare: "Compare A and B",
    compares: "A and B play at the same loudness. Switch between them on the deck.",
    rates: "These clips have different sample rates and cannot be switched in place.",
    seed: (seed = 0) => `seed ${seed}`,
    goOn: "Go on",
    goOnTitle: "Make music that goes on from this clip",
    vary: "Vary",
    varyTitle: "Same seed, another prompt",
    download: "Download",
    downloadOf: (title = "") => `Download ${title}`,
    wavOnly: "The server no longer has this clip, so it can be downloaded as wav alone.",
    link: "Link",
    linkTitle: "Copy a link that makes the same clip",
    copied: "The link is copied: prompt, seed and settings are in it.",
    thisLink: "The link to this clip: ",
    without: "Its sounds are not in the link.",
    remove: "Delete",
    removed: "Deleted.",
    comment: (title = "", seed = 0, seconds = 0, bundle = "") => `prompt: ${title}; seed: ${seed}; seconds: ${seconds}; bundle: ${bundle}`,
  },

  link: {
    here: "A link has filled the form. Make music to hear it.",
    other: "This link was made with another bundle: the clip will not be the same here.",
  },

  error: {
    gone: "The server does not answer. Check that it runs, then try again.",
    cut: "The connection was cut.",
    forgotten: "The server no longer has this clip. Make it anew: the same seed gives the same clip.",
    status: (status = 0) => `The server answered ${status}. Try again later.`,
    ended: (state = "") => `The job has ended: ${state}. Make it anew.`,
  },
};
