#include "cuda/launch.cuh"
#include "math/lookup.h"
#include "math/random.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 256;

// One thread per ray. Without any pixel to draw, which only the device knows, all numbers are 0.
__global__ void __launch_bounds__(kThreads)
    draw_pixels_kernel(In<int64_t, 2> counter, In<int64_t, kEdges> starts, In<int64_t, kCameras> widths,
                       Maybe<In<int64_t, kEntries>> valid, Out<int64_t, kRays> camera,
                       Out<float, kRays, 2> xy, Out<int64_t, kRays> index, int64_t stream) {
  const int64_t ray = item(), cameras = widths.size[0];
  if (ray >= camera.size[0]) return;
  const uint64_t key = random_key(counter.data[0], counter.data[1], stream);
  const int64_t drawn = uniform_below(key, uint64_t(ray), valid ? valid.size[0] : starts.data[cameras]);
  const int64_t pixel = valid ? valid.data[drawn] : drawn;
  const int64_t image = owner(starts.data, cameras, pixel), place = pixel - starts.data[image];
  const int64_t row = place / (widths.data[image] > 0 ? widths.data[image] : 1);
  camera.data[ray] = image, index.data[ray] = pixel;
  xy.data[2 * ray] = float(place - row * widths.data[image]) + 0.5f;
  xy.data[2 * ray + 1] = float(row) + 0.5f;
}

// One thread per number of a colour.
__global__ void __launch_bounds__(kThreads)
    gather_pixels_kernel(In<uint8_t, kBytes> images, In<int64_t, kRays> index,
                         Out<float, kRays, kChannels> colour) {
  const int64_t i = item(), channels = colour.size[1];
  if (i >= index.size[0] * channels) return;
  const int64_t ray = i / channels, at = index.data[ray] * channels + (i - ray * channels);
  const bool inside = at >= 0 && at < images.size[0];
  colour.data[i] = inside ? float(images.data[at]) / 255.0f : nanf("");
}

// As many channels as a lane moves at once.
template <class T, int kWide>
struct alignas(kWide * sizeof(T)) Pack {
  T of[kWide];
};

// One warp per ray; lanes take packs of channels.
template <class T, int kWide>
__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    gather_features_kernel(In<T, kEntries, kChannels> maps, In<int64_t, kCameras> map_starts,
                           In<int64_t, kCameras, 2> map_size, In<int64_t, kCameras, 2> image_size,
                           In<int64_t, kRays> camera, In<float, kRays, 2> xy,
                           Out<float, kRays, kChannels> feature, int64_t mode) {
  const int64_t ray = warp(), packs = feature.size[1] / kWide;
  if (ray >= camera.size[0]) return;

  using From = Pack<T, kWide>;
  using To = Pack<float, kWide>;
  To* out = reinterpret_cast<To*>(feature.data) + ray * packs;
  const int64_t image = camera.data[ray];
  const bool known = image >= 0 && image < map_size.size[0];
  const int64_t width = known ? map_size.data[2 * image] : 0,
                height = known ? map_size.data[2 * image + 1] : 0;
  const int64_t start = known ? map_starts.data[image] : 0;
  if (width <= 0 || height <= 0 || start < 0 || start + width * height > maps.size[0]) {
    for (int64_t c = lane(); c < feature.size[1]; c += 32) feature.data[ray * feature.size[1] + c] = nanf("");
    return;
  }

  const int64_t* size = image_size.data + 2 * image;
  const float x = xy.data[2 * ray], y = xy.data[2 * ray + 1];
  const From* map = reinterpret_cast<const From*>(maps.data) + start * packs;
  const auto cell = [&](int64_t row, int64_t column) { return map + (row * width + column) * packs; };
  if (mode == kNearestBelow) {
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

void draw_pixels(Cuda q, In<int64_t, 2> counter, In<int64_t, kEdges> starts, In<int64_t, kCameras> widths,
                 Maybe<In<int64_t, kEntries>> valid, Out<int64_t, kRays> camera, Out<float, kRays, 2> xy,
                 Out<int64_t, kRays> index, int64_t stream) {
  require(starts.size[0] == widths.size[0] + 1, "starts must have one number more than widths");
  require(widths.size[0] > 0 && (!valid || valid.size[0] > 0), "there are no pixels to draw from");
  launch("draw_pixels", draw_pixels_kernel, blocks(camera.size[0], kThreads), kThreads, q, counter, starts,
         widths, valid, camera, xy, index, stream);
}

void gather_pixels(Cuda q, In<uint8_t, kBytes> images, In<int64_t, kRays> index,
                   Out<float, kRays, kChannels> colour) {
  require(colour.size[1] >= 1 && images.size[0] % colour.size[1] == 0,
          "images must hold `channels` bytes per pixel");
  launch("gather_pixels", gather_pixels_kernel, blocks(index.size[0] * colour.size[1], kThreads), kThreads, q,
         images, index, colour);
}

void gather_features(Cuda q, Payload<kEntries, kChannels> maps, In<int64_t, kCameras> map_starts,
                     In<int64_t, kCameras, 2> map_size, In<int64_t, kCameras, 2> image_size,
                     In<int64_t, kRays> camera, In<float, kRays, 2> xy, Out<float, kRays, kChannels> feature,
                     int64_t mode) {
  require(mode >= 0 && mode < kLookups, "mode is not a known lookup");
  with_dtype(maps, [&](auto maps) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(maps.data)>>;
    const auto start = [&](auto kernel) {
      launch("gather_features", kernel, blocks(camera.size[0], kWarpsPerBlock), 32 * kWarpsPerBlock, q, maps,
             map_starts, map_size, image_size, camera, xy, feature, mode);
    };
    const bool aligned = reinterpret_cast<uintptr_t>(maps.data) % sizeof(Pack<T, 4>) == 0 &&
                         reinterpret_cast<uintptr_t>(feature.data) % sizeof(Pack<float, 4>) == 0;
    if (aligned && feature.size[1] % 4 == 0)
      start(gather_features_kernel<T, 4>);
    else
      start(gather_features_kernel<T, 1>);
  });
}

}  // namespace raymarch
