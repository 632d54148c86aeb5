// Plays Lyria RealTime's protocol with Google's own client, and says what came: `node lyria.mjs NODE_MODULES URL KEY MODEL`.
import {createRequire} from "node:module";

const [modules, url, key, model] = process.argv.slice(2);
const {GoogleGenAI} = createRequire(`${modules}/`)("@google/genai");
console.warn = () => {};

const said = {samples: 0, types: [], metadata: [], filtered: [], warnings: [], setup: false, first: null, seconds: [], closed: null};
const heard = [];
let begun = 0;

const client = new GoogleGenAI({apiKey: key, apiVersion: "v1alpha", httpOptions: {baseUrl: url}});
const session = await client.live.music.connect({
  model,
  callbacks: {
    onmessage: (message) => {
      if (message.setupComplete) said.setup = true;
      if (message.filteredPrompt) said.filtered.push(message.filteredPrompt);
      if (message.warning) said.warnings.push(message.warning);
      const chunk = message.audioChunk;
      if (!chunk) return;
      if (said.first === null) said.first = (performance.now() - begun) / 1000;
      if (!said.types.includes(chunk.mimeType)) said.types.push(chunk.mimeType);
      const source = JSON.stringify(chunk.sourceMetadata);
      if (said.metadata.at(-1) !== source) said.metadata.push(source);
      const bytes = Buffer.from(chunk.data, "base64");
      heard.push(bytes);
      said.samples += bytes.length / 4;
      said.seconds.push(message.promptToEarSeconds);
    },
    onerror: (error) => { said.error = String(error.message ?? error); },
    onclose: (event) => { said.closed = event.reason; },
  },
});

const until = async (true_, milliseconds = 20000) => {
  const end = performance.now() + milliseconds;
  while (!true_() && said.closed === null) {
    if (performance.now() > end) throw new Error(`waited too long: ${JSON.stringify(said)}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
};
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

await until(() => said.setup);
if (said.closed === null) {
  await session.setWeightedPrompts({weightedPrompts: [{text: "calm piano", weight: 1.0}]});
  await session.setMusicGenerationConfig({musicGenerationConfig: {temperature: 0.9, topK: 300, guidance: 3.0, seed: 7, bpm: 120}});
  begun = performance.now();
  session.play();
  await until(() => said.samples > 48000);
  await session.setWeightedPrompts({weightedPrompts: [{text: "calm piano", weight: 0.3}, {text: "brass band", weight: 0.7}]});
  await session.setWeightedPrompts({weightedPrompts: [{text: "x", weight: 1.0}, {text: "x", weight: -1.0}]});
  await until(() => said.metadata.length > 1 && said.filtered.length);
  session.pause();
  await pause(500);
  said.paused = [said.samples];
  await pause(700);
  said.paused.push(said.samples);
  session.play();
  await until(() => said.samples > said.paused[1] + 24000);
  session.resetContext();
  said.reset = said.samples;
  await until(() => said.samples > said.reset + 96000);
  session.stop();
  await pause(300);
  said.stopped = [said.samples];
  await pause(500);
  said.stopped.push(said.samples);
  session.close();
}
said.pcm = Buffer.concat(heard).toString("base64");
process.stdout.write(JSON.stringify(said), () => process.exit(0));
