// Products of a few rows with a packed matrix: the microkernel of the MLP kernels.
//
//     c[row][j] = init[j] + sum_k a[row][k] * matrix[k][j]          k ascending, one chain per
//     number
//
// The matrix is packed into panels of kPanel columns, as panel[k][column], so that it is read in
// order. A block of rows by a panel is kept in registers.
// However rows are cut into blocks, every number is the same chain of fused multiply-adds: its bits
// do not depend on what shares its batch.
//
// A library's gemm is as fast from some hundred rows on; here there are 1 to kTileRows (one time
// step of a few plans, or the time steps of one plan), where its packing and its dispatch cost more
// than the product: `bench/plan.py` prints both.
#pragma once

#include "grasp/arena.h"
#include "grasp/simd.h"

namespace grasp::GRASP_SIMD {

constexpr int kPanel = 2 * kLanes;
constexpr int kSlim = 8;
// A block of kBlockRows by one panel fills the registers: 28 of 32, or 12 of 16, hold sums.
#if GRASP_LANES == 16 || defined(__aarch64__)
constexpr int kBlockRows = 14;
#else
constexpr int kBlockRows = 6;
#endif

// A packed matrix of `depth` rows and `columns` columns, on a 64-byte boundary: vectors that cross
// cache lines would halve the speed of a single row.
struct Matrix {
  const float* data = nullptr;
  int64_t depth = 0, columns = 0;

  // A panel would be mostly empty: every column is kept by itself, see `product_slim`.
  bool slim() const { return columns <= kSlim; }
  int64_t slim_stride() const { return round_up(depth, kLanes); }
  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
  int64_t floats() const { return slim() ? columns * slim_stride() : depth * kPanel * panels(); }
};

// Packs element(k, j) into `out`.
template <class Element>
Matrix pack(float* out, int64_t depth, int64_t columns, const Element& element) {
  const Matrix matrix{out, depth, columns};
  if (matrix.slim()) {
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t k = 0; k < matrix.slim_stride(); ++k) *out++ = k < depth ? element(k, j) : 0.0f;
    }
    return matrix;
  }
  for (int64_t first = 0; first < columns; first += kPanel) {
    const bool whole = first + kPanel <= columns;
    for (int64_t k = 0; k < depth; ++k, out += kPanel) {
      if (whole) {
        for (int64_t j = 0; j < kPanel; ++j) out[j] = element(k, first + j);
      } else {
        for (int64_t j = 0; j < kPanel; ++j) {
          out[j] = first + j < columns ? element(k, first + j) : 0.0f;
        }
      }
    }
  }
  return matrix;
}

// ---- The microkernel: kRows rows by kPanels panels ----

template <int kRows, int kPanels>
void product_block(const float* a, int64_t a_stride, const float* panel, int64_t depth,
                   const float* init, float* c, int64_t c_stride) {
  constexpr int kVectors = 2, kColumns = kPanels * kVectors;
  Float sums[kRows][kColumns];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) sums[row][v] = init ? load(init + v * kLanes) : Float{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Float b[kColumns];
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) {
      const int64_t place = (v / kVectors * depth + k) * kVectors + v % kVectors;
      b[v] = load(panel + place * kLanes);
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const Float factor = splat(a[row * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kColumns; ++v) sums[row][v] = multiply_add(factor, b[v], sums[row][v]);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) store(c + row * c_stride + v * kLanes, sums[row][v]);
  }
}

using BlockFunction = void (*)(const float*, int64_t, const float*, int64_t, const float*, float*,
                               int64_t);

template <int kPanels, int kRows>
BlockFunction find_block(int64_t rows) {
  if constexpr (kRows == 0) {
    return nullptr;
  } else {
    return rows == kRows ? product_block<kRows, kPanels> : find_block<kPanels, kRows - 1>(rows);
  }
}

// A few rows leave most registers free. They take several panels side by side, since a multiply-add
// takes four cycles, two can start in each, and every sum is one chain.
inline BlockFunction find_block(int64_t rows, int64_t panels) {
  if (panels == 4) return find_block<4, 1>(rows);
  if (panels == 2) return find_block<2, 3>(rows);
  return find_block<1, kBlockRows>(rows);
}

// A row times a few columns: a vector of chains per column, along k, summed at the end.
template <int kColumns>
void product_slim(const Matrix& matrix, const float* a, const float* init, float* c) {
  const int64_t whole = matrix.depth / kLanes * kLanes;
  Float sums[kColumns] = {};
  const auto add = [&](int64_t k, Float factor) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      sums[j] = multiply_add(factor, load(matrix.data + j * matrix.slim_stride() + k), sums[j]);
    }
  };
  for (int64_t k = 0; k < whole; k += kLanes) add(k, load(a + k));
  if (whole < matrix.depth) add(whole, load(a + whole, int(matrix.depth - whole)));
#pragma GCC unroll 8
  for (int j = 0; j < kColumns; ++j) c[j] = (init ? init[j] : 0.0f) + sum_lanes_float(sums[j]);
}

template <int kColumns = kSlim>
void product_slim(const Matrix& matrix, const float* a, int64_t a_stride, int64_t rows,
                  const float* init, float* c, int64_t c_stride) {
  if constexpr (kColumns > 0) {
    if (matrix.columns < kColumns) {
      return product_slim<kColumns - 1>(matrix, a, a_stride, rows, init, c, c_stride);
    }
    for (int64_t row = 0; row < rows; ++row) {
      product_slim<kColumns>(matrix, a + row * a_stride, init, c + row * c_stride);
    }
  }
}

// Strides in floats. `init` has whole panels or is null; whole panels of `c` are written, but for a
// slim matrix.
inline void product(const Matrix& matrix, const float* a, int64_t a_stride, int64_t rows,
                    const float* init, float* c, int64_t c_stride) {
  if (rows == 0) return;
  if (matrix.slim()) return product_slim(matrix, a, a_stride, rows, init, c, c_stride);
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int64_t most = rows == 1 ? 4 : rows <= 3 ? 2 : 1;
  for (int64_t panel = 0; panel < matrix.panels();) {
    int64_t at_once = most;
    while (panel + at_once > matrix.panels()) at_once /= 2;
    const int64_t column = panel * kPanel;
    int64_t row = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t size = rows / blocks + (block < rows % blocks);
      find_block(size, at_once)(a + row * a_stride, a_stride, matrix.data + column * matrix.depth,
                                matrix.depth, init ? init + column : nullptr,
                                c + row * c_stride + column, c_stride);
      row += size;
    }
    panel += at_once;
  }
}

}  // namespace grasp::GRASP_SIMD
