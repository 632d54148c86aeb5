// How a clip is cut into windows, as Python's runtime/windows.py does it: pure arithmetic on counts.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "bundle.h"

namespace musiclm {

struct Window {  // the caller's own, of a stage
  std::optional<int64_t> length, overlap;
};

struct Span {
  int64_t start, fresh, stop;  // the first that is read; the first that is made (Python's `new`); one past the last
};

class Spans {
 public:
  Spans(std::optional<int64_t> total, int64_t length, int64_t overlap = 0, std::vector<int64_t> first = {});
  int64_t size() const;           // of windows; only with a total
  bool has(int64_t index) const;  // whether there is such a window
  Span operator[](int64_t index) const;
  int64_t window_of(int64_t position) const;
  Spans over(int64_t total) const;

  std::optional<int64_t> total;
  int64_t length, overlap;
  std::vector<int64_t> first;

 private:
  int64_t stop(int64_t index) const;
};

struct Ratio {  // a fraction in lowest terms, as Python's Fraction of a float has it: 128 bits hold its products
  __int128 numerator, denominator;
  int64_t floor_of(int64_t times) const;  // floor(times * this)
  int64_t ceil_of(int64_t times) const;
};

struct WindowPlan {
  Spans coarse, fine;
  std::optional<Spans> semantic;  // where semantic tokens carry time
  std::vector<int64_t> runs;
  Ratio tokens_per_frame;
  int64_t semantic_length;
  std::optional<int64_t> semantic_overlap;
  std::optional<int64_t> most_read;  // semantic tokens that a coarse window reads at most

  std::optional<int64_t> frames() const { return coarse.total; }
  bool timed() const { return semantic.has_value(); }
  int64_t lead() const;
  int64_t run(int64_t window) const;
  int64_t semantic_prefix(int64_t window, int64_t before) const;
  std::pair<int64_t, int64_t> seen(int64_t window) const;
  bool reached(int64_t window, int64_t tokens) const;
};

// windows: by stage. Throws Error(ML_BAD_ARGUMENT) where Python raises ValueError, with its words.
WindowPlan plan_windows(const Manifest&, std::optional<int64_t> frames, int64_t samples, const Window (&windows)[kStages],
                        std::optional<int64_t> first_frames, double growth);
int64_t default_frames(const Manifest&);  // of a clip of one window of every stage

}  // namespace musiclm
