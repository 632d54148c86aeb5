// A bundle's manifest and files, checked as Python's runtime/bundle.py checks them: the format, every field, every size and SHA-256.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace musiclm {

constexpr int kFormat = 7;
constexpr int kStages = 3, kSemantic = 0, kCoarse = 1, kFine = 2;  // in this order everywhere
extern const char* const kStageNames[kStages];

struct Sampling {
  double temperature, filter_thres, cond_scale;
};

struct Bias {
  int64_t entries, stride;
  std::optional<int64_t> frames;
};

struct Place {  // of a weight in the graph's data
  std::string type;
  uint64_t offset;
  std::vector<uint64_t> shape;
};

struct Segment {  // a sequence of tokens in the input of a transformer that reads several: start token, tokens, end
  std::string name;
  int64_t start, first, quantizers, codebook;  // rows of its start token and of code 0; the end's number is the codebook's size
  std::optional<int64_t> positions;            // row of its first token in the table of absolute positions
};

struct Step {
  int64_t dim_head, inner, streams, block;
  bool value_residual, normalised_attention, convolution;
  std::optional<int64_t> positions;  // rows of the table of absolute positions
  std::string precision;             // "fp32", "int8", "int4"
  std::map<std::string, Place> weights;
};

struct Decoder {
  std::string graph;
  std::optional<std::string> context;  // graph; none for a stage without condition
  std::string conditioning;            // "none", "cross_attention", "prefix", "tokens"
  bool guidance;
  int64_t dim, depth, heads, cache_head_size, vocabulary;
  std::optional<int64_t> coarse_quantizers, fine_quantizers;
  std::map<std::string, int64_t> rows;  // first row of each kind of token in the table of embeddings
  std::vector<Segment> segments;        // with conditioning "tokens": what it reads, and last what it predicts
  std::optional<Bias> bias;
  int64_t max_length;
  std::optional<int64_t> semantic_window;  // coarse: most semantic tokens that a window reads
  Step step;
  Sampling sampling;

  int64_t outputs() const { return fine_quantizers ? *fine_quantizers : coarse_quantizers ? *coarse_quantizers : 1; }
};

struct Codec {
  std::string stream;  // graph
  int64_t sample_hz, samples_per_frame, quantizers, groups, codebook_size, lookahead_frames, min_frames;
  std::map<std::string, std::vector<int64_t>> states;  // name -> dimensions after the batch
};

struct Mulan {
  std::string text, tokenizer;  // graph, file
  int64_t max_tokens, dim_latent;
  bool tokenizer_from_file;  // whether the file decides everything; else it is CLIP's
  int64_t pad_id;
};

struct Conditioner {
  std::string graph;
  int64_t quantizers, codebook_size;
  std::map<std::string, int64_t> namespaces;  // name -> width of its conditioning, 0 where its codes are read as tokens
};

struct FileRecord {
  uint64_t bytes;
  std::string sha256;
};

struct Manifest {
  Mulan mulan;
  Conditioner conditioner;
  Decoder decoders[kStages];
  Codec codec;
  std::optional<double> seconds;  // of a clip unless another length is asked for
  bool unique_consecutive;
  double semantic_tokens_per_second;
  std::map<std::string, FileRecord> files;

  int64_t columns(int stage) const { return decoders[stage].outputs() * codec.groups; }  // tokens of a frame, of coarse (1) and fine (2)
};

struct Identity {  // what distinguishes a file from another one of its name
  uint64_t device, inode, bytes;
  int64_t changed_s, changed_ns;
  bool operator==(const Identity&) const;
};

struct Bundle {
  std::filesystem::path root;  // absolute, without links: what the program's current folder is later does not matter
  Manifest manifest;
  std::string sha256;                                      // of the manifest
  std::map<std::string, std::optional<Identity>> checked;  // each file as it was when the bundle was opened

  // `~/` stands for the home folder. Throws Error(ML_BAD_BUNDLE) that lists all faults, with Python's words for each where it has some.
  static Bundle open(const std::string& path);
  // Throws Error(ML_BAD_BUNDLE) if the file, or the weights of a graph of that name, is not the one that was checked: a new export in its
  // place would otherwise lend its graphs to this bundle's manifest.
  std::filesystem::path path(const std::string& name) const;
};

}  // namespace musiclm
