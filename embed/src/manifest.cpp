// See manifest.h. Each record is read in the order of its class in runtime/bundle.py; fields that this library does not use are checked as
// well, since a bundle that Python refuses is refused here.
#include "manifest.h"

#include <algorithm>

#include "error.h"
#include "record.h"

namespace musiclm {

const char* const kStageNames[kStages] = {"semantic", "coarse", "fine"};

void Faults::note(std::string fault) {
  constexpr size_t kMost = 200;
  for (size_t at; (at = fault.find('\0')) != std::string::npos;) fault.replace(at, 1, "\\x00");  // a message ends with the first zero byte
  if (lines_.size() < kMost) lines_.push_back(std::move(fault));
  else left_out_++;
}

std::string Faults::text() const {
  std::string text;
  for (const std::string& line : lines_) text += (text.empty() ? "  - " : "\n  - ") + line;
  if (left_out_ > 0) text += "\n  - and " + std::to_string(left_out_) + " more";
  return text;
}

// --- values

std::string read_text(const Found& found) {
  if (found.value.is_string() && !not_finite(found.value)) return found.value.get<std::string>();
  found.expected("str");
  return {};
}

bool read_flag(const Found& found) {
  if (found.value.is_boolean()) return found.value.get<bool>();
  found.expected("bool");
  return false;
}

double read_number(const Found& found) {
  if (found.value.is_number()) return found.value.get<double>();
  found.expected("float");
  return 0;
}

int64_t read_whole(const Found& found, int64_t least, int64_t most) {
  if (!found.value.is_number_integer()) {
    found.expected("int");
    return least;
  }
  const bool beyond = found.value.is_number_unsigned() && found.value.get<uint64_t>() > static_cast<uint64_t>(most);
  const int64_t number = beyond ? most : found.value.get<int64_t>();
  if (number < least) found.refuse("expected at least " + std::to_string(least) + ", got " + found.value.dump());
  if (beyond) found.refuse("expected at most " + std::to_string(most) + ", got " + found.value.dump());
  return number;
}

int64_t read_count(const Found& found) { return read_whole(found, 1, INT32_MAX); }

std::vector<int64_t> read_counts(const Found& found) {
  if (!found.value.is_array()) {
    found.expected("list");
    return {};
  }
  std::vector<int64_t> counts;
  for (const Json& item : found.value) counts.push_back(read_count({item, found.where, found.faults}));
  return counts;
}

namespace {

// --- records

using Named = std::vector<std::string>;

Sampling read_sampling(const Found& found) {
  Record record(found, "Sampling");
  Sampling sampling;
  sampling.temperature = record.get("temperature", read_number);
  sampling.filter_thres = record.get("filter_thres", read_number);
  sampling.cond_scale = record.get("cond_scale", read_number);
  record.finish();
  // as SamplingConfig (runtime/sampling.py), with which Python uses them
  if (sampling.temperature != 0 && sampling.temperature < 1e-30) {
    found.refuse("temperature must be 0 (greedy) or a number of at least 1e-30, got " + Json(sampling.temperature).dump());
  }
  if (sampling.filter_thres < 0 || sampling.filter_thres >= 1) {
    found.refuse("filter_thres must be in [0, 1), got " + Json(sampling.filter_thres).dump());
  }
  return sampling;
}

Bias read_bias(const Found& found) {
  Record record(found, "Bias");
  Bias bias;
  bias.entries = record.get("entries", read_count);
  bias.stride = record.get("stride", read_count);
  bias.frames = record.get_or_none("frames", read_count, true);
  record.finish();
  return bias;
}

Place read_place(const Found& found) {
  Place place{};
  const Json& value = found.value;
  if (!value.is_array()) {
    found.expected("list");
    return place;
  }
  bool fits = value.size() >= 2 && value[0].is_string();
  for (size_t i = 1; i < value.size(); i++) fits = fits && value[i].is_number_unsigned();
  if (fits) {
    place = {value[0].get<std::string>(), value[1].get<uint64_t>(), {}};
    for (size_t i = 2; i < value.size(); i++) place.shape.push_back(value[i].get<uint64_t>());
  }
  if (place.type != "float32" && place.type != "uint8") {
    found.refuse("expected a type, a byte offset and dimensions, got " + short_repr(value));
  }
  return place;
}

Step read_step(const Found& found) {
  Record record(found, "Step");
  Step step;
  step.dim_head = record.get("dim_head", read_count);
  step.inner = record.get("inner", read_count);
  step.streams = record.get("streams", read_count);
  step.value_residual = record.get("value_residual", read_flag);
  step.normalised_attention = record.get("normalised_attention", read_flag);
  step.convolution = record.get("convolution", read_flag);
  step.positions = record.get_or_none("positions", read_count);
  step.precision = record.get("precision", read_text);
  step.block = record.get("block", read_count);
  step.weights = record.each("weights", read_place);
  record.finish();
  return step;
}

Segment read_segment(const Found& found) {
  Record record(found, "Segment");
  Segment segment;
  segment.name = record.get("name", read_text);
  segment.start = record.get("start", read_count);
  segment.first = record.get("first", read_count);
  segment.quantizers = record.get("quantizers", read_count);
  segment.codebook = record.get("codebook", read_count);
  segment.positions = record.get_or_none("positions", read_count);
  record.finish();
  return segment;
}

std::vector<Segment> read_segments(const Found& found) {
  if (!found.value.is_array()) {
    found.expected("list");
    return {};
  }
  std::vector<Segment> segments;
  for (const Json& item : found.value) segments.push_back(read_segment({item, found.where, found.faults}));
  return segments;
}

Decoder read_decoder(const Found& found) {
  Record record(found, "Decoder");
  Decoder decoder;
  decoder.graph = record.get("graph", read_text);
  decoder.context = record.get_or_none("context", read_text);
  decoder.conditioning = record.get("conditioning", read_text);
  decoder.guidance = record.get("guidance", read_flag);
  decoder.dim = record.get("dim", read_count);
  decoder.depth = record.get("depth", read_count);
  decoder.heads = record.get("heads", read_count);
  decoder.cache_head_size = record.get("cache_head_size", read_count);
  decoder.vocabulary = record.get("vocabulary", read_count);
  decoder.coarse_quantizers = record.get_or_none("coarse_quantizers", read_count);
  decoder.fine_quantizers = record.get_or_none("fine_quantizers", read_count);
  decoder.rows = record.each("rows", [](const Found& row) { return read_whole(row, 0, INT32_MAX); });
  decoder.segments = record.get_or_none("segments", read_segments).value_or(std::vector<Segment>{});
  decoder.bias = record.get_or_none("bias", read_bias);
  decoder.max_length = record.get("max_length", read_count);
  decoder.semantic_window = record.get_or_none("semantic_window", read_count);
  decoder.step = record.get("step", read_step);
  decoder.sampling = record.get("sampling", read_sampling);
  record.finish();
  return decoder;
}

Mulan read_mulan(const Found& found, Named& named) {
  Record record(found, "Mulan");
  Mulan mulan;
  named.push_back(mulan.text = record.get("text", read_text));
  named.push_back(record.get("audio", read_text));
  named.push_back(mulan.tokenizer = record.get("tokenizer", read_text));
  mulan.max_tokens = record.get("max_tokens", read_count);
  mulan.dim_latent = record.get("dim_latent", read_count);
  for (const char* name : {"sample_hz", "min_samples", "audio_heads"}) record.get(name, read_count);
  record.get("samples_per_patch", read_number);
  record.get_or_none("spectrogram", [&](const Found& part) {
    Record spectrogram(part, "Spectrogram");
    named.push_back(spectrogram.get("graph", read_text));
    for (const char* name : {"n_fft", "win_length", "hop_length", "bins", "frames"}) spectrogram.get(name, read_count);
    spectrogram.get("center", read_flag);
    if (const auto filters = spectrogram.get_or_none("filters", read_text); filters && !filters->empty()) named.push_back(*filters);
    spectrogram.finish();
    return true;
  });
  record.get_or_none("trained_tokens", read_text, true);
  mulan.tokenizer_from_file = record.get_or_none("tokenizer_from_file", read_flag, true).value_or(false);
  mulan.pad_id = record.get_or_none("pad_id", read_count, true).value_or(0);
  for (const char* name : {"window_samples", "window_bytes"}) record.get_or_none(name, read_count, true);
  record.finish();
  return mulan;
}

Conditioner read_conditioner(const Found& found) {
  Record record(found, "Conditioner");
  Conditioner conditioner;
  conditioner.graph = record.get("graph", read_text);
  conditioner.quantizers = record.get("quantizers", read_count);
  conditioner.codebook_size = record.get("codebook_size", read_count);
  conditioner.namespaces = record.each("namespaces", [](const Found& width) { return read_whole(width, 0, INT32_MAX); });
  record.finish();
  return conditioner;
}

Codec read_codec(const Found& found, Named& named) {
  Record record(found, "Codec");
  Codec codec;
  codec.stream = record.get("stream", read_text);
  if (const auto encode = record.get_or_none("encode", read_text); encode && !encode->empty()) named.push_back(*encode);
  codec.sample_hz = record.get("sample_hz", read_count);
  codec.samples_per_frame = record.get("samples_per_frame", read_count);
  codec.quantizers = record.get("quantizers", read_count);
  codec.groups = record.get("groups", read_count);
  codec.codebook_size = record.get("codebook_size", read_count);
  codec.lookahead_frames = record.get("lookahead_frames", read_count);
  codec.min_frames = record.get("min_frames", read_count);
  codec.states = record.each("states", read_counts);
  record.get("min_encode_frames", read_count);
  record.finish();
  return codec;
}

bool read_semantic_tokenizer(const Found& found, Named& named) {
  Record record(found, "SemanticTokenizer");
  named.push_back(record.get("graph", read_text));
  record.get("kind", read_text);
  for (const char* name : {"sample_hz", "samples_per_token", "min_samples", "codebook_size"}) record.get(name, read_count);
  record.get_or_none("heads", read_count);
  record.finish();
  return true;
}

FileRecord read_file_record(const Found& found) {
  Record record(found, "FileRecord");
  FileRecord file;
  file.bytes = record.get("bytes", [](const Found& bytes) { return read_whole(bytes, 1, INT64_MAX / 2); });
  file.sha256 = record.get("sha256", read_text);
  record.finish();
  return file;
}

// A measured error: Python writes and reads infinite ones, too.
bool read_error(const Found& found) {
  if (!found.value.is_number() && !not_finite(found.value)) found.expected("float");
  return true;
}

}  // namespace

namespace {

Manifest read_manifest(const Found& found, Named& named) {
  Record record(found, "Manifest");
  Manifest manifest;
  manifest.mulan = record.get("mulan", [&](const Found& part) { return read_mulan(part, named); });
  manifest.conditioner = record.get("conditioner", read_conditioner);
  for (int stage = 0; stage < kStages; stage++) manifest.decoders[stage] = record.get(kStageNames[stage], read_decoder);
  manifest.codec = record.get("codec", [&](const Found& part) { return read_codec(part, named); });
  record.get_or_none("wav2vec", [&](const Found& part) { return read_semantic_tokenizer(part, named); });
  manifest.seconds = record.get_or_none("seconds", read_number);
  manifest.unique_consecutive = record.get("unique_consecutive", read_flag);
  manifest.semantic_tokens_per_second = record.get("semantic_tokens_per_second", read_number);
  record.each("made_by", read_text);
  record.each("sources", [](const Found& source) { return Record::read_each(source, read_text); });
  const auto read_list = [](const Found& list) { return list.value.is_array() || (list.expected("list"), false); };
  record.each("settings", [&](const Found& stage) { return Record::read_each(stage, read_list); });
  record.each("errors", read_error);
  const auto read_any = [](const Found&) { return true; };
  record.each("quality", [&](const Found& stage) { return Record::read_each(stage, read_any); });
  manifest.files = record.each("files", read_file_record);
  record.get("format", read_count);
  record.finish();
  named.insert(named.end(), {manifest.conditioner.graph, manifest.codec.stream});
  for (const Decoder& decoder : manifest.decoders) {
    named.insert(named.end(), {decoder.graph, decoder.graph + ".data"});
    if (decoder.context) named.push_back(*decoder.context);
  }
  return manifest;
}

}  // namespace

Manifest parse_manifest(const std::string& text, Faults& faults, Named& named) {
  Json values;
  try {
    values = read_json(text);
  } catch (const Error& error) {
    faults.note(std::string(kManifestName) + " is not JSON: " + error.what());
    return {};
  }
  const auto format = values.find("format");  // the end, of anything but an object
  const Json found = format == values.end() ? Json() : *format;
  if (found != kFormat) {
    const bool newer = found.is_number_integer() && found > kFormat;
    faults.note(std::string(kManifestName) + " has format " + short_repr(found) + ", this version reads " + std::to_string(kFormat) + ": " +
                (newer ? "update musiclm-deploy" : "export the checkpoints again"));
    return {};
  }
  return read_manifest({values, kManifestName, faults}, named);
}

}  // namespace musiclm
