#include "cuda/launch.cuh"
#include "math/lookup.h"
#include "math/random.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 256;

// One thread per ray.
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
  const int64_t row = place / widths.data[image];
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

// One warp per ray; lanes take channels.
template <class T>
__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    gather_features_kernel(In<T, kEntries, kChannels> maps, In<int64_t, kCameras> map_starts,
                           In<int64_t, kCameras, 2> map_size, In<int64_t, kCameras, 2> image_size,
                           In<int64_t, kRays> camera, In<float, kRays, 2> xy,
                           Out<float, kRays, kChannels> feature, int64_t mode) {
  const int64_t ray = warp(), channels = feature.size[1];
  if (ray >= camera.size[0]) return;
  const int64_t image = camera.data[ray];
  float* out = feature.data + ray * channels;
  const int64_t *map = map_size.data + 2 * image, *size = image_size.data + 2 * image;
  const bool known = image >= 0 && image < map_size.size[0] && map[0] > 0 && map[1] > 0;
  const int64_t first = known ? map_starts.data[image] : -1;
  if (first < 0 || first + map[0] * map[1] > maps.size[0]) {
    for (int64_t c = lane(); c < channels; c += 32) out[c] = nanf("");
    return;
  }
  const T* base = maps.data + first * channels;
  const float x = xy.data[2 * ray], y = xy.data[2 * ray + 1];
  if (mode == 0) {
    const T* cell =
        base + (nearest_cell(y, size[1], map[1]) * map[0] + nearest_cell(x, size[0], map[0])) * channels;
    for (int64_t c = lane(); c < channels; c += 32) out[c] = to_float(cell[c]);
    return;
  }
  const Cells u = cells_around(x, size[0], map[0]), v = cells_around(y, size[1], map[1]);
  const T *a = base + (v.first * map[0] + u.first) * channels,
          *b = base + (v.first * map[0] + u.second) * channels,
          *p = base + (v.second * map[0] + u.first) * channels,
          *q = base + (v.second * map[0] + u.second) * channels;
  for (int64_t c = lane(); c < channels; c += 32) {
    const float top = to_float(a[c]) * (1 - u.share) + to_float(b[c]) * u.share;
    const float bottom = to_float(p[c]) * (1 - u.share) + to_float(q[c]) * u.share;
    out[c] = top * (1 - v.share) + bottom * v.share;
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
  launch("gather_pixels", gather_pixels_kernel, blocks(index.size[0] * colour.size[1], kThreads), kThreads, q,
         images, index, colour);
}

void gather_features(Cuda q, Payload<kEntries, kChannels> maps, In<int64_t, kCameras> map_starts,
                     In<int64_t, kCameras, 2> map_size, In<int64_t, kCameras, 2> image_size,
                     In<int64_t, kRays> camera, In<float, kRays, 2> xy, Out<float, kRays, kChannels> feature,
                     int64_t mode) {
  with_dtype(maps, [&](auto maps) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(maps.data)>>;
    launch("gather_features", gather_features_kernel<T>, blocks(camera.size[0], kWarpsPerBlock),
           32 * kWarpsPerBlock, q, maps, map_starts, map_size, image_size, camera, xy, feature, mode);
  });
}

}  // namespace raymarch
