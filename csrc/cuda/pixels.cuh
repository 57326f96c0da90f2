// Which pixel a ray gets, and what images and maps hold there.
#pragma once
#include "cuda/launch.cuh"
#include "math/lookup.h"
#include "math/random.h"

namespace raymarch {

struct Drawn {
  int64_t image, pixel;
  float x, y;
};

// Without any pixel to draw, which only the device knows, all numbers are 0.
__device__ __forceinline__ Drawn draw_pixel(const In<int64_t, 2>& counter, const In<int64_t, kEdges>& starts,
                                            const In<int64_t, kCameras>& widths,
                                            const Maybe<In<int64_t, kEntries>>& valid, int64_t stream,
                                            int64_t ray) {
  const int64_t cameras = widths.size[0];
  const uint64_t key = random_key(counter.data[0], counter.data[1], stream);
  const int64_t drawn = uniform_below(key, uint64_t(ray), valid ? valid.size[0] : starts.data[cameras]);
  const int64_t pixel = valid ? valid.data[drawn] : drawn;
  const int64_t image = owner(starts.data, cameras, pixel), place = pixel - starts.data[image];
  const int64_t row = place / (widths.data[image] > 0 ? widths.data[image] : 1);
  return {image, pixel, float(place - row * widths.data[image]) + 0.5f, float(row) + 0.5f};
}

__device__ __forceinline__ float channel_of_pixel(const In<uint8_t, kBytes>& images, int64_t at) {
  const bool inside = at >= 0 && at < images.size[0];
  return inside ? float(images.data[at]) / 255.0f : nanf("");
}

// As many channels as a lane moves at once.
template <class T, int kWide>
struct alignas(kWide * sizeof(T)) Pack {
  T of[kWide];
};

template <class T>
bool in_fours(const void* cells, const void* feature, int64_t channels) {
  return reinterpret_cast<uintptr_t>(cells) % sizeof(Pack<T, 4>) == 0 &&
         reinterpret_cast<uintptr_t>(feature) % sizeof(Pack<float, 4>) == 0 && channels % 4 == 0;
}

template <class T>
struct FeatureMaps {
  In<T, kEntries, kChannels> cells;
  In<int64_t, kCameras> starts;
  In<int64_t, kCameras, 2> size, image_size;
  int64_t mode;
};

// By one warp; lanes take packs of channels.
template <int kWide, class T>
__device__ __forceinline__ void gather_feature(const FeatureMaps<T>& maps, int64_t image, float x, float y,
                                               float* feature) {
  using From = Pack<T, kWide>;
  using To = Pack<float, kWide>;
  const int64_t channels = maps.cells.size[1], packs = channels / kWide;
  To* out = reinterpret_cast<To*>(feature);
  const bool known = image >= 0 && image < maps.size.size[0];
  const int64_t width = known ? maps.size.data[2 * image] : 0;
  const int64_t height = known ? maps.size.data[2 * image + 1] : 0;
  const int64_t start = known ? maps.starts.data[image] : 0;
  const int64_t* size = maps.image_size.data + 2 * image;
  if (width <= 0 || height <= 0 || start < 0 || start + width * height > maps.cells.size[0] || size[0] <= 0 ||
      size[1] <= 0) {
    for (int64_t c = lane(); c < channels; c += 32) feature[c] = nanf("");
    return;
  }

  const From* map = reinterpret_cast<const From*>(maps.cells.data) + start * packs;
  const auto cell = [&](int64_t row, int64_t column) { return map + (row * width + column) * packs; };
  if (maps.mode == kNearestBelow) {
    const From* found = cell(nearest_cell(y, size[1], height), nearest_cell(x, size[0], width));
    for (int64_t c = lane(); c < packs; c += 32) {
      const From a = found[c];
      To row;
#pragma unroll
      for (int k = 0; k < kWide; ++k) row.of[k] = to_float(a.of[k]);
      out[c] = row;
    }
    return;
  }

  const Cells u = cells_around(x, size[0], width), v = cells_around(y, size[1], height);
  const From *a = cell(v.first, u.first), *b = cell(v.first, u.second);
  const From *p = cell(v.second, u.first), *q = cell(v.second, u.second);
  for (int64_t c = lane(); c < packs; c += 32) {
    const From a4 = a[c], b4 = b[c], p4 = p[c], q4 = q[c];
    To row;
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      const float above = blend(to_float(a4.of[k]), to_float(b4.of[k]), u.share);
      const float below = blend(to_float(p4.of[k]), to_float(q4.of[k]), u.share);
      row.of[k] = blend(above, below, v.share);
    }
    out[c] = row;
  }
}

}  // namespace raymarch
