// Walks an item tile by tile, with the noise of every tile ready in first-level cache.
//
// White noise: consecutive features, and then consecutive rows, have consecutive counters, so one
// strip of normals covers a tile of a wide row or many narrow rows. Bridge noise: the normals
// belong to (mode, feature), not to rows; they are drawn once for a band of features and combined
// per row.
#pragma once

#include "grasp/normals.h"

namespace grasp::GRASP_SIMD {

struct Strip {
  alignas(64) float values[kTile + kPadding];
};

inline Philox plan_stream(const NoiseField& field, int64_t plan) {
  return Philox(field.seed, field.iteration, uint64_t(field.plan_ids[plan]));
}

// What a visitor is shown at a time: a tile of one row, or several whole rows of at most a tile.
// It is called as visit(span, noise, noise_stride), rows in order; `noise` may be null.
struct Span {
  int64_t row, rows;
  int64_t feature, width;
};

inline bool is_narrow(const Item& item) { return item.feature_end <= kTile; }

template <class Visitor>
void walk_quiet(const Item& item, Visitor& visit) {
  if (is_narrow(item)) {
    const int64_t rows = item.row_end - item.row_begin;
    visit(Span{item.row_begin, rows, 0, item.feature_end}, nullptr, 0);
    return;
  }
  for (int64_t row = item.row_begin; row < item.row_end; ++row) {
    for (int64_t feature = item.feature_begin; feature < item.feature_end; feature += kTile) {
      const int64_t width = smaller(kTile, item.feature_end - feature);
      visit(Span{row, 1, feature, width}, nullptr, 0);
    }
  }
}

template <class Visitor>
void walk_white(const NoiseField& field, const Item& item, Visitor& visit) {
  const Philox philox = plan_stream(field, item.plan);
  const int64_t groups = field.groups();
  Strip strip;
  if (is_narrow(item)) {
    const int64_t rows_per_strip = kTile / (4 * groups);
    for (int64_t row = item.row_begin; row < item.row_end; row += rows_per_strip) {
      const int64_t rows = smaller(rows_per_strip, item.row_end - row);
      const int64_t counter = (field.first_row + row) * groups;
      fill_normals(philox, uint32_t(counter), rows * groups, strip.values);
      visit(Span{row, rows, 0, item.feature_end}, strip.values, 4 * groups);
    }
    return;
  }
  for (int64_t row = item.row_begin; row < item.row_end; ++row) {
    for (int64_t feature = item.feature_begin; feature < item.feature_end; feature += kTile) {
      const int64_t width = smaller(kTile, item.feature_end - feature);
      const int64_t counter = (field.first_row + row) * groups + feature / 4;
      fill_normals(philox, uint32_t(counter), (width + 3) / 4, strip.values);
      visit(Span{row, 1, feature, width}, strip.values, 0);
    }
  }
}

inline void combine_modes(const NoiseField& field, int64_t row, const float* normals,
                          int64_t mode_stride, int64_t width, float* out) {
  for (int64_t i = 0; i < width; i += kLanes) {
    Float sum{};
    for (int64_t mode = 0; mode < field.modes; ++mode) {
      const float coefficient = field.coefficients[mode * field.rows + row];
      sum = multiply_add(coefficient, load(normals + mode * mode_stride + i), sum);
    }
    store(out + i, sum);
  }
}

template <class Visitor>
void walk_bridge(const NoiseField& field, const Item& item, float* scratch, Visitor& visit) {
  const Philox philox = plan_stream(field, item.plan);
  const int64_t band = mode_band(field.modes);
  const int64_t mode_stride = band + kPadding;
  Strip strip;
  for (int64_t begin = item.feature_begin; begin < item.feature_end; begin += band) {
    const int64_t end = smaller(begin + band, item.feature_end);
    for (int64_t mode = 0; mode < field.modes; ++mode) {
      const int64_t counter = mode * field.groups() + begin / 4;
      float* const normals = scratch + mode * mode_stride;
      fill_normals(philox, uint32_t(counter), (end - begin + 3) / 4, normals);
    }
    for (int64_t row = item.row_begin; row < item.row_end; ++row) {
      for (int64_t feature = begin; feature < end; feature += kTile) {
        const int64_t width = smaller(kTile, end - feature);
        const float* const normals = scratch + (feature - begin);
        combine_modes(field, row, normals, mode_stride, width, strip.values);
        visit(Span{row, 1, feature, width}, strip.values, 0);
      }
    }
  }
}

template <class Visitor>
void walk(const NoiseField& field, const Item& item, float* scratch, Visitor& visit) {
  switch (field.kind) {
    case NoiseKind::kNone: return walk_quiet(item, visit);
    case NoiseKind::kWhite: return walk_white(field, item, visit);
    case NoiseKind::kBridge: return walk_bridge(field, item, scratch, visit);
  }
}

// ---- The ops that return noise itself ----

template <class T>
struct NoiseWriter {
  const Item& item;
  const Rows& out;

  void operator()(const Span& span, const float* noise, int64_t noise_stride) const {
    T* const first = static_cast<T*>(out.data) + item.plan * out.plan_stride + span.feature;
    for (int64_t row = 0; row < span.rows; ++row) {
      T* const to = first + (span.row + row) * out.row_stride;
      const float* const from = noise + row * noise_stride;
      int64_t i = 0;
      for (; i + kLanes <= span.width; i += kLanes) store(to + i, noise ? load(from + i) : Float{});
      if (i < span.width) store(to + i, noise ? load(from + i) : Float{}, int(span.width - i));
    }
  }
};

template <class T>
void write_noise_as(const NoiseField& field, const Item& item, float* scratch, const Rows& out) {
  NoiseWriter<T> writer{item, out};
  walk(field, item, scratch, writer);
}

inline void write_noise(const NoiseField& field, const Item& item, float* scratch, Storage storage,
                        const Rows& out) {
  storage == Storage::kFloat32 ? write_noise_as<float>(field, item, scratch, out)
                               : write_noise_as<BFloat16>(field, item, scratch, out);
}

// The raw words of whole rows, four per counter, into the (N, rows, 4 * groups) array at `out`.
inline void write_words(const NoiseField& field, const Item& item, uint32_t* out) {
  const Philox philox = plan_stream(field, item.plan);
  const int64_t groups = field.groups();
  const int64_t counters = (item.row_end - item.row_begin) * groups;
  out += 4 * groups * (item.plan * field.rows + item.row_begin);
  Wides counter = Philox::counters(uint32_t((field.first_row + item.row_begin) * groups));
  for (int64_t done = 0; done < counters; done += kCountersPerPack) {
    const WordPairs words = philox(counter);
    uint32_t buffer[4 * kCountersPerPack];
    store_interleaved(buffer, words.even, words.odd);
    const int64_t count = smaller(kCountersPerPack, counters - done);
    __builtin_memcpy(out + 4 * done, buffer, 16 * count);
    counter = counter + uint64_t(kCountersPerPack);
  }
}

// Normals from given words, four per counter, so that a test can reach every word there is.
inline void write_normals(const uint32_t* words, int64_t counters, float* out) {
  const Wides order = Philox::counters(0);
  for (int64_t done = 0; done < counters; done += kCountersPerPack) {
    const int64_t count = smaller(kCountersPerPack, counters - done);
    WordPairs pairs{};
    for (int i = 0; i < kUnroll; ++i) {
      for (int lane = 0; lane < kCountersPerVector; ++lane) {
        const int64_t counter = int64_t(order[i][lane]);
        if (counter >= count) continue;
        const uint32_t* from = words + 4 * (done + counter);
        pairs.even[i][2 * lane] = from[0];
        pairs.odd[i][2 * lane] = from[1];
        pairs.even[i][2 * lane + 1] = from[2];
        pairs.odd[i][2 * lane + 1] = from[3];
      }
    }
    const Normals normals = box_muller_rotate(pairs.odd, box_muller_radius(pairs.even));
    float buffer[4 * kCountersPerPack];
    store_interleaved(buffer, normals.cosine, normals.sine);
    __builtin_memcpy(out + 4 * done, buffer, 16 * count);
  }
}

}  // namespace grasp::GRASP_SIMD
