#include "math/harmonics.h"

#include "cpu/clones.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {
namespace {

constexpr int kBlock = 64;  // points per vectorised loop

int in_block(int64_t points, int64_t block) {
  return int(std::min<int64_t>(kBlock, points - block * kBlock));
}

RM_CLONES void harmonics_block(const real* d, int count, int64_t signs, real* y) {
  for (int i = 0; i < count; ++i) {
    const Harmonics row = harmonics(load3(d, i), signs);
    for (int k = 0; k < kHarmonics; ++k) y[i * kHarmonics + k] = row.of[k];
  }
}

RM_CLONES void harmonics_block_vjp(const real* d, int count, int64_t signs, const real* grad_y,
                                   real* grad_d) {
  for (int i = 0; i < count; ++i) {
    Harmonics g;
    for (int k = 0; k < kHarmonics; ++k) g.of[k] = grad_y[i * kHarmonics + k];
    store3(grad_d, i, harmonics_vjp(load3(d, i), signs, g));
  }
}

// x holds one coordinate of a block; sine and cosine go to separate arrays.
RM_CLONES void turns(const real* x, real frequency, real* sine, real* cosine) {
  for (int i = 0; i < kBlock; ++i) {
    const Turn at = turn(frequency * x[i]);
    sine[i] = at.sine, cosine[i] = at.cosine;
  }
}

RM_CLONES void add_turn_vjps(const real* x, real frequency, const real* sine, const real* cosine,
                             real* grad_x) {
  for (int i = 0; i < kBlock; ++i)
    grad_x[i] += turn_vjp(turn(frequency * x[i]), frequency, {sine[i], cosine[i]});
}

}  // namespace

void harmonics_forward(Cpu, In<real, kPoints, 3> d, int64_t signs, Out<real, kPoints, 16> y) {
  const char* problem = harmonics_problem(signs);
  require(!problem, problem);
  parallel_for((d.size[0] + kBlock - 1) / kBlock, kBlock * 8, [&](int64_t b) {
    harmonics_block(d.data + 3 * b * kBlock, in_block(d.size[0], b), signs, y.data + b * kBlock * kHarmonics);
  });
}

void harmonics_backward(Cpu, In<real, kPoints, 3> d, int64_t signs, In<real, kPoints, 16> grad_y,
                        Out<real, kPoints, 3> grad_d) {
  const char* problem = harmonics_problem(signs);
  require(!problem, problem);
  parallel_for((d.size[0] + kBlock - 1) / kBlock, kBlock * 8, [&](int64_t b) {
    harmonics_block_vjp(d.data + 3 * b * kBlock, in_block(d.size[0], b), signs,
                        grad_y.data + b * kBlock * kHarmonics, grad_d.data + 3 * b * kBlock);
  });
}

void fourier_forward(Cpu, In<real, kPoints, 3> x, int64_t frequencies, int64_t layout, int64_t column,
                     Out<real, kPoints, kOutputs> y) {
  const char* problem = fourier_problem(frequencies, layout, column, y.size[1]);
  require(!problem, problem);
  parallel_for((x.size[0] + kBlock - 1) / kBlock, kBlock * frequencies * 4, [&](int64_t b) {
    const int count = in_block(x.size[0], b);
    real at[kBlock] = {}, sine[kBlock], cosine[kBlock];
    real* rows = y.data + b * kBlock * y.size[1] + column;
    for (int d = 0; d < 3; ++d) {
      for (int i = 0; i < count; ++i) at[i] = x.data[3 * (b * kBlock + i) + d];
      for (int k = 0; k < frequencies; ++k) {
        turns(at, fourier_frequency(k, layout), sine, cosine);
        const Columns to = fourier_columns(d, k, int(frequencies), layout);
        for (int i = 0; i < count; ++i) {
          rows[i * y.size[1] + to.sine] = sine[i];
          rows[i * y.size[1] + to.cosine] = cosine[i];
        }
      }
    }
  });
}

void fourier_backward(Cpu, In<real, kPoints, 3> x, int64_t frequencies, int64_t layout, int64_t column,
                      In<real, kPoints, kOutputs> grad_y, Out<real, kPoints, 3> grad_x) {
  const char* problem = fourier_problem(frequencies, layout, column, grad_y.size[1]);
  require(!problem, problem);
  parallel_for((x.size[0] + kBlock - 1) / kBlock, kBlock * frequencies * 4, [&](int64_t b) {
    const int count = in_block(x.size[0], b);
    real at[kBlock] = {}, sine[kBlock] = {}, cosine[kBlock] = {};
    const real* rows = grad_y.data + b * kBlock * grad_y.size[1] + column;
    for (int d = 0; d < 3; ++d) {
      real sum[kBlock] = {};
      for (int i = 0; i < count; ++i) at[i] = x.data[3 * (b * kBlock + i) + d];
      for (int k = 0; k < frequencies; ++k) {
        const Columns from = fourier_columns(d, k, int(frequencies), layout);
        for (int i = 0; i < count; ++i) {
          sine[i] = rows[i * grad_y.size[1] + from.sine];
          cosine[i] = rows[i * grad_y.size[1] + from.cosine];
        }
        add_turn_vjps(at, fourier_frequency(k, layout), sine, cosine, sum);
      }
      for (int i = 0; i < count; ++i) grad_x.data[3 * (b * kBlock + i) + d] = sum[i];
    }
  });
}

}  // namespace raymarch
