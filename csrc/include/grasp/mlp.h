// An MLP world model on a tile of rows: forward, and the vector-Jacobian product.
//
// A row is one (plan, time step). Activations of a tile are [row][feature] with a common stride, so
// that a layer is a product with a packed matrix (product.h) and a pass of its activation over the
// result. The way back needs the slope of every activation, kept per layer.
#pragma once

#include "grasp/activations.h"
#include "grasp/product.h"

namespace grasp::GRASP_SIMD {

// What a factor of a bfloat16 product is rounded to; it stays a float.
GRASP_INLINE Float round_to_bfloat16(Float x) { return widen(narrow(x)); }

// The model, packed for this instruction set once per call.
struct PackedLayer {
  Matrix forward;     // (inputs, width)
  Matrix backward;    // (width, inputs), of the first layer too
  const float* bias;  // whole panels, like the next two
  const float* gain;  // or null
  const float* shift;
};

struct PackedMlp {
  const Mlp* mlp = nullptr;
  PackedLayer layers[Mlp::kMaxLayers];
  Matrix action_backward;  // the first layer's action columns: (width, A)
  int64_t stride = 0;      // of a row of activations

  bool narrow() const { return mlp->storage == Storage::kBFloat16; }
};

GRASP_INLINE float number(float x) { return x; }
GRASP_INLINE float number(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

template <class T>  // of the weights
PackedMlp pack_mlp_as(const Mlp& mlp, Arena& arena) {
  PackedMlp packed;
  packed.mlp = &mlp;
  int64_t widest = mlp.inputs();
  const auto padded = [&](const float* from, int64_t size) -> const float* {
    if (!from) return nullptr;
    float* const to = arena.take(round_up(size, kPanel));
    for (int64_t i = 0; to && i < round_up(size, kPanel); ++i) to[i] = i < size ? from[i] : 0.0f;
    return to;
  };
  const auto matrix = [&](int64_t depth, int64_t columns, const auto& element) {
    float* const to = arena.take(Matrix{nullptr, depth, columns}.floats());
    return to ? pack(to, depth, columns, element) : Matrix{};
  };
  for (int i = 0; i < mlp.count; ++i) {
    const MlpLayer& layer = mlp.layers[i];
    PackedLayer& to = packed.layers[i];
    if (layer.width > widest) widest = layer.width;
    const T* const weight = static_cast<const T*>(layer.weight);
    const int64_t inputs = layer.inputs;
    to.forward = matrix(inputs, layer.width,
                        [=](int64_t k, int64_t j) { return number(weight[j * inputs + k]); });
    to.backward = matrix(layer.width, inputs,
                         [=](int64_t k, int64_t j) { return number(weight[k * inputs + j]); });
    to.bias = padded(layer.bias, layer.width);
    to.gain = padded(layer.gain, layer.width);
    to.shift = padded(layer.shift, layer.width);
  }
  const MlpLayer& first = mlp.layers[0];
  packed.action_backward = matrix(first.width, mlp.action_features, [&](int64_t k, int64_t j) {
    return number(static_cast<const T*>(first.weight)[k * first.inputs + mlp.state_features + j]);
  });
  // An odd number of cache lines: rows then start in different sets of the cache.
  packed.stride = round_up(widest, kPanel) + 16;
  return packed;
}

inline PackedMlp pack_mlp(const Mlp& mlp, Arena& arena) {
  return mlp.storage == Storage::kFloat32 ? pack_mlp_as<float>(mlp, arena)
                                          : pack_mlp_as<BFloat16>(mlp, arena);
}

// ---- One tile ----

// The slopes of every layer, and its normalised sums where it has a norm.
struct Saved {
  float* slope[Mlp::kMaxLayers] = {};
  float* normalised[Mlp::kMaxLayers] = {};
  float* inverse_deviation[Mlp::kMaxLayers] = {};  // one per row
};

class MlpTile {
 public:
  // Works on `rows` at a time, and keeps what the way back needs of `kept` rows.
  MlpTile(const PackedMlp& packed, int64_t rows, int64_t kept, Arena& arena) : packed_(packed) {
    for (auto& buffer : buffers_) buffer = arena.take(rows * packed.stride);
    for (int i = 0; i < packed.mlp->count; ++i) {
      const MlpLayer& layer = packed.mlp->layers[i];
      saved_.slope[i] = arena.take(kept * packed.stride);
      if (!layer.gain) continue;
      saved_.normalised[i] = arena.take(kept * packed.stride);
      saved_.inverse_deviation[i] = arena.take(kept);
    }
  }

  int64_t stride() const { return packed_.stride; }

  // Row `row` of the input, from a state and an action.
  void set_input(int64_t row, const float* state, const float* action) {
    const Mlp& mlp = *packed_.mlp;
    float* const to = buffers_[0] + row * stride();
    const int64_t d = mlp.state_features;
    const float *const mean = mlp.input_mean, *const inverse = mlp.input_inverse_scale;
    over_row(d, [&](int64_t i, auto... n) {
      store(to + i, (load(state + i, n...) - load(mean + i, n...)) * load(inverse + i, n...), n...);
    });
    over_row(mlp.action_features, [&](int64_t i, auto... n) {
      const int64_t j = d + i;
      store(to + j, (load(action + i, n...) - load(mean + j, n...)) * load(inverse + j, n...),
            n...);
    });
    if (packed_.narrow()) round_row(to, mlp.inputs());
  }

  // The last layer's output for all rows whose input was set, stride() apart. With kKeep, what the
  // way back needs of them is kept, from row `first` on.
  template <bool kKeep>
  const float* forward(int64_t rows, int64_t first = 0) {
    float *from = buffers_[0], *to = buffers_[1];
    for (int i = 0; i < packed_.mlp->count; ++i) {
      const PackedLayer& layer = packed_.layers[i];
      product(layer.forward, from, stride(), rows, layer.bias, to, stride());
      if (layer.gain) normalise<kKeep>(i, first, rows, to);
      activate_rows<kKeep>(i, first, rows, to);
      float* const free = from;
      from = to;
      to = free;
    }
    return from;
  }

  // next state of one row, from the last layer's output.
  void finish(const float* output, const float* state, float* next) const {
    const Mlp& mlp = *packed_.mlp;
    over_row(mlp.state_features, [&](int64_t i, auto... n) {
      Float to = multiply_add(load(mlp.output_scale + i, n...), load(output + i, n...),
                              load(mlp.output_shift + i, n...));
      if (mlp.residual) to += load(state + i, n...);
      store(next + i, to, n...);
    });
  }

  // Row `row` of the way back, from the cotangent of its next state.
  void set_cotangent(int64_t row, const float* cotangent) {
    const Mlp& mlp = *packed_.mlp;
    float* const to = buffers_[0] + row * stride();
    over_row(mlp.state_features, [&](int64_t i, auto... n) {
      store(to + i, load(mlp.output_scale + i, n...) * load(cotangent + i, n...), n...);
    });
  }

  // Gradients for the inputs of rows [0, rows), whose slopes were kept from row `first` on. All
  // inputs, or the actions alone; not yet divided by the input scale.
  const float* backward(int64_t first, int64_t rows, bool actions_only) {
    return through(packed_.mlp->count - 1, first, rows, 1, actions_only);
  }

  // The same for unit cotangents, all D of kept row 0, then those of row 1, and so on, from the
  // `first` of them on: all inputs. The product of a unit with the last layer is a row of it.
  const float* backward_units(int64_t first, int64_t rows) {
    const Mlp& mlp = *packed_.mlp;
    const int64_t d = mlp.state_features;
    const int last = mlp.count - 1;
    const MlpLayer& layer = mlp.layers[last];
    const bool dense = layer.gain || layer.activation == Activation::kSimNorm;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t kept = (first + row) / d, unit = (first + row) % d;
      float* const to = buffers_[0] + row * stride();
      if (dense) {
        __builtin_memset(to, 0, sizeof(float) * d);
        to[unit] = mlp.output_scale[unit];
        continue;
      }
      float factor = mlp.output_scale[unit] * saved_.slope[last][kept * stride() + unit];
      if (packed_.narrow()) {
        round_row(&factor, 1);
        scaled(static_cast<const BFloat16*>(layer.weight) + unit * layer.inputs, factor, last, to);
      } else {
        scaled(static_cast<const float*>(layer.weight) + unit * layer.inputs, factor, last, to);
      }
    }
    return through(dense ? last : last - 1, first, rows, d, false);
  }

 private:
  // A row of the weights of layer `index` by a factor.
  template <class T>
  void scaled(const T* weight, float factor, int index, float* to) {
    over_row(packed_.mlp->layers[index].inputs,
             [&](int64_t i, auto... n) { store(to + i, load(weight + i, n...) * factor, n...); });
  }

  // Back through layers `last` to 0. Kept row k / per has the slopes for row k - first.
  const float* through(int last, int64_t first, int64_t rows, int64_t per, bool actions_only) {
    float *from = buffers_[0], *to = buffers_[1];
    for (int i = last; i >= 0; --i) {
      slope_rows(i, first, rows, per, from);
      const bool actions = i == 0 && actions_only;
      product(actions ? packed_.action_backward : packed_.layers[i].backward, from, stride(), rows,
              nullptr, to, stride());
      float* const free = from;
      from = to;
      to = free;
    }
    return from;
  }

  // body(i, vectors) for packs of a row, the last one with fewer vectors than it could hold.
  template <class Body>
  static GRASP_INLINE void over_packs(int64_t size, const Body& body) {
    int64_t i = 0;
    for (; i + kUnroll * kLanes <= size; i += kUnroll * kLanes) body(i, kUnroll);
    if (i < size) body(i, int((size - i + kLanes - 1) / kLanes));
  }
  static GRASP_INLINE Floats load_pack(const float* from, int vectors) {
    Floats pack;
    GRASP_FOR_PACK(pack[i] = i < vectors ? load(from + i * kLanes) : Float{}) return pack;
  }
  static GRASP_INLINE void store_pack(float* to, const Floats& pack, int vectors) {
    GRASP_FOR_PACK(if (i < vectors) store(to + i * kLanes, pack[i]))
  }

  static void round_row(float* values, int64_t size) {
    over_row(size, [&](int64_t i, auto... n) {
      store(values + i, round_to_bfloat16(load(values + i, n...)), n...);
    });
  }

  template <bool kKeep>
  void normalise(int index, int64_t first, int64_t rows, float* values) {
    const MlpLayer& layer = packed_.mlp->layers[index];
    const PackedLayer& packed = packed_.layers[index];
    const int64_t width = layer.width;
    for (int64_t row = 0; row < rows; ++row) {
      float* const z = values + row * stride();
      const float mean = float(
          sum_over(width, [&](int64_t i, auto... n) { return load(z + i, n...); }) / double(width));
      const double variance = sum_over(width,
                                       [&](int64_t i, auto... n) {
                                         const Float centred = load(z + i, n...) - mean;
                                         return mask_to(centred * centred, n...);
                                       }) /
                              double(width);
      const float inverse = 1.0f / __builtin_sqrtf(float(variance) + layer.epsilon);
      float* const kept = kKeep ? saved_.normalised[index] + (first + row) * stride() : nullptr;
      if (kKeep) saved_.inverse_deviation[index][first + row] = inverse;
      for (int64_t i = 0; i < width; i += kLanes) {
        const Float normalised = (load(z + i) - mean) * inverse;
        if (kKeep) store(kept + i, normalised);
        store(z + i, multiply_add(normalised, load(packed.gain + i), load(packed.shift + i)));
      }
    }
  }

  // The sum of term(i) over a row, the last vector with the number of its lanes.
  template <class Term>
  static double sum_over(int64_t width, const Term& term) {
    Float sum{};
    over_row(width, [&](int64_t i, auto... n) { sum += term(i, n...); });
    return sum_lanes(sum);
  }
  static GRASP_INLINE Float mask_to(Float x) { return x; }
  static GRASP_INLINE Float mask_to(Float x, int n) {
    for (int lane = n; lane < kLanes; ++lane) x[lane] = 0;
    return x;
  }

  template <bool kKeep>
  void activate_rows(int index, int64_t first, int64_t rows, float* values) {
    switch (packed_.mlp->layers[index].activation) {
#define GRASP_CASE(name) \
  case Activation::name: \
    return activate_rows_as<kKeep, Activation::name>(index, first, rows, values);
      GRASP_CASE(kIdentity)
      GRASP_CASE(kRelu)
      GRASP_CASE(kSilu)
      GRASP_CASE(kGelu)
      GRASP_CASE(kMish)
      GRASP_CASE(kTanh)
      GRASP_CASE(kElu)
#undef GRASP_CASE
      case Activation::kSimNorm: return simnorm_rows<kKeep>(index, first, rows, values);
    }
  }

  template <bool kKeep, Activation kActivation>
  void activate_rows_as(int index, int64_t first, int64_t rows, float* values) {
    if (packed_.narrow() && index + 1 < packed_.mlp->count) {
      activate_rows_as<kKeep, kActivation, true>(index, first, rows, values);
    } else if (kKeep || kActivation != Activation::kIdentity) {
      activate_rows_as<kKeep, kActivation, false>(index, first, rows, values);
    }
  }

  // kRound: for a product of bfloat16 numbers.
  template <bool kKeep, Activation kActivation, bool kRound>
  void activate_rows_as(int index, int64_t first, int64_t rows, float* values) {
    for (int64_t row = 0; row < rows; ++row) {
      float* const h = values + row * stride();
      float* const slope = kKeep ? saved_.slope[index] + (first + row) * stride() : nullptr;
      over_packs(packed_.mlp->layers[index].width, [&](int64_t i, int vectors) {
        Activated result = activate<kActivation>(load_pack(h + i, vectors));
        if (kRound) {
          GRASP_FOR_PACK(result.value[i] = round_to_bfloat16(result.value[i]))
        }
        store_pack(h + i, result.value, vectors);
        if (kKeep) store_pack(slope + i, result.slope, vectors);
      });
    }
  }

  // A softmax per group; its Jacobian needs the output itself.
  template <bool kKeep>
  void simnorm_rows(int index, int64_t first, int64_t rows, float* values) {
    const MlpLayer& layer = packed_.mlp->layers[index];
    const bool narrow = packed_.narrow() && index + 1 < packed_.mlp->count;
    for (int64_t row = 0; row < rows; ++row) {
      float* const h = values + row * stride();
      for (int64_t begin = 0; begin < layer.width; begin += layer.group) {
        float most = h[begin];
        for (int64_t i = 1; i < layer.group; ++i) most = h[begin + i] > most ? h[begin + i] : most;
        for (int64_t i = 0; i < layer.group; ++i) h[begin + i] -= most;
      }
      over_packs(layer.width, [&](int64_t i, int vectors) {
        store_pack(h + i, exponential(load_pack(h + i, vectors)), vectors);
      });
      for (int64_t begin = 0; begin < layer.width; begin += layer.group) {
        float total = 0;
        for (int64_t i = 0; i < layer.group; ++i) total += h[begin + i];
        for (int64_t i = 0; i < layer.group; ++i) h[begin + i] /= total;
      }
      if (kKeep) {
        float* const kept = saved_.slope[index] + (first + row) * stride();
        __builtin_memcpy(kept, h, sizeof(float) * layer.width);
      }
      if (narrow) round_row(h, layer.width);
    }
  }

  // Through the activation and the norm of a layer, in place.
  void slope_rows(int index, int64_t first, int64_t rows, int64_t per, float* values) {
    const MlpLayer& layer = packed_.mlp->layers[index];
    for (int64_t row = 0; row < rows; ++row) {
      float* const g = values + row * stride();
      const int64_t kept = (first + row) / per;
      const float* const slope = saved_.slope[index] + kept * stride();
      if (layer.activation == Activation::kSimNorm) {
        for (int64_t begin = 0; begin < layer.width; begin += layer.group) {
          float total = 0;
          for (int64_t i = begin; i < begin + layer.group; ++i) total += slope[i] * g[i];
          for (int64_t i = begin; i < begin + layer.group; ++i) g[i] = slope[i] * (g[i] - total);
        }
      } else if (layer.activation != Activation::kIdentity) {
        for (int64_t i = 0; i < layer.width; i += kLanes) {
          store(g + i, load(g + i) * load(slope + i));
        }
      }
      if (layer.gain) unnormalise(index, kept, g);
      if (packed_.narrow()) round_row(g, layer.width);
    }
  }

  void unnormalise(int index, int64_t row, float* g) {
    const int64_t width = packed_.mlp->layers[index].width;
    const float* const gain = packed_.layers[index].gain;
    const float* const normalised = saved_.normalised[index] + row * stride();
    const auto scaled = [&](int64_t i, auto... n) { return load(g + i, n...) * load(gain + i); };
    const float mean = float(sum_over(width, scaled) / double(width));
    const float along = float(
        sum_over(width, [&](int64_t i,
                            auto... n) { return scaled(i, n...) * load(normalised + i, n...); }) /
        double(width));
    const float inverse = saved_.inverse_deviation[index][row];
    for (int64_t i = 0; i < width; i += kLanes) {
      store(g + i, inverse * (scaled(i) - mean - load(normalised + i) * along));
    }
  }

  const PackedMlp& packed_;
  float* buffers_[2];
  Saved saved_;
};

}  // namespace grasp::GRASP_SIMD
