#include "cuda/pixels.cuh"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 256;

// One thread per ray.
__global__ void __launch_bounds__(kThreads)
    draw_pixels_kernel(In<int64_t, 2> counter, In<int64_t, kEdges> starts, In<int64_t, kCameras> widths,
                       Maybe<In<int64_t, kEntries>> valid, Out<int64_t, kRays> camera,
                       Out<float, kRays, 2> xy, Out<int64_t, kRays> index, int64_t stream) {
  const int64_t ray = item();
  if (ray >= camera.size[0]) return;
  const Drawn at = draw_pixel(counter, starts, widths, valid, stream, ray);
  camera.data[ray] = at.image, index.data[ray] = at.pixel;
  xy.data[2 * ray] = at.x, xy.data[2 * ray + 1] = at.y;
}

// One thread per number of a colour.
__global__ void __launch_bounds__(kThreads)
    gather_pixels_kernel(In<uint8_t, kBytes> images, In<int64_t, kRays> index,
                         Out<float, kRays, kChannels> colour) {
  const int64_t i = item(), channels = colour.size[1];
  if (i >= index.size[0] * channels) return;
  const int64_t ray = i / channels;
  colour.data[i] = channel_of_pixel(images, index.data[ray] * channels + (i - ray * channels));
}

// One warp per ray.
template <class T, int kWide>
__global__ void __launch_bounds__(32 * kWarpsPerBlock, 8)
    gather_features_kernel(FeatureMaps<T> maps, In<int64_t, kRays> camera, In<float, kRays, 2> xy,
                           Out<float, kRays, kChannels> feature) {
  const int64_t ray = warp();
  if (ray >= camera.size[0]) return;
  gather_feature<kWide>(maps, camera.data[ray], xy.data[2 * ray], xy.data[2 * ray + 1],
                        feature.data + ray * feature.size[1]);
}

// One warp per ray: every lane draws, then lanes take channels.
template <class T, int kWide>
__global__ void __launch_bounds__(32 * kWarpsPerBlock, 8)
    draw_truth_kernel(In<int64_t, 2> counter, In<int64_t, kEdges> starts, In<int64_t, kCameras> widths,
                      Maybe<In<int64_t, kEntries>> valid, In<uint8_t, kBytes> images, FeatureMaps<T> maps,
                      Out<int64_t, kRays> camera, Out<float, kRays, 2> xy, Out<float, kRays, kInputs> colour,
                      float* feature, int64_t stream) {
  const int64_t ray = warp();
  if (ray >= camera.size[0]) return;
  const Drawn at = draw_pixel(counter, starts, widths, valid, stream, ray);
  if (lane() == 0) {
    camera.data[ray] = at.image;
    xy.data[2 * ray] = at.x, xy.data[2 * ray + 1] = at.y;
  }
  const int64_t channels = colour.size[1];
  for (int64_t c = lane(); c < channels; c += 32)
    colour.data[ray * channels + c] = channel_of_pixel(images, at.pixel * channels + c);
  if (feature) gather_feature<kWide>(maps, at.image, at.x, at.y, feature + ray * maps.cells.size[1]);
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
  with_dtype(maps, [&](auto cells) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(cells.data)>>;
    const FeatureMaps<T> found = {cells, map_starts, map_size, image_size, mode};
    const auto start = [&](auto kernel) {
      launch("gather_features", kernel, blocks(camera.size[0], kWarpsPerBlock), 32 * kWarpsPerBlock, q, found,
             camera, xy, feature);
    };
    if (in_fours<T>(cells.data, feature.data, feature.size[1]))
      start(gather_features_kernel<T, 4>);
    else
      start(gather_features_kernel<T, 1>);
  });
}

void draw_truth(Cuda q, In<int64_t, 2> counter, In<int64_t, kEdges> starts, In<int64_t, kCameras> widths,
                Maybe<In<int64_t, kEntries>> valid, In<uint8_t, kBytes> images,
                Maybe<Payload<kPoints, kChannels>> maps, Maybe<In<int64_t, kCameras>> map_starts,
                Maybe<In<int64_t, kCameras, 2>> map_size, In<int64_t, kCameras, 2> image_size,
                Out<int64_t, kRays> camera, Out<float, kRays, 2> xy, Out<float, kRays, kInputs> colour,
                Maybe<Out<float, kRays, kChannels>> feature, int64_t stream, int64_t mode) {
  require(starts.size[0] == widths.size[0] + 1, "starts must have one number more than widths");
  require(widths.size[0] > 0 && (!valid || valid.size[0] > 0), "there are no pixels to draw from");
  require(colour.size[1] >= 1 && images.size[0] % colour.size[1] == 0,
          "images must hold `channels` bytes per pixel");
  require(mode >= 0 && mode < kLookups, "mode is not a known lookup");
  require(!feature || (maps && map_starts && map_size), "features need maps, map_starts and map_size");
  with_dtype(maps, [&](auto view) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(view.data)>>;
    const In<T, kEntries, kChannels> cells = {view.data, {view.size[0], view.size[1]}};
    const FeatureMaps<T> found = {cells, map_starts, map_size, image_size, mode};
    const auto start = [&](auto kernel) {
      launch("draw_truth", kernel, blocks(camera.size[0], kWarpsPerBlock), 32 * kWarpsPerBlock, q, counter,
             starts, widths, valid, images, found, camera, xy, colour, feature.data, stream);
    };
    if (feature && in_fours<T>(cells.data, feature.data, cells.size[1]))
      start(draw_truth_kernel<T, 4>);
    else
      start(draw_truth_kernel<T, 1>);
  });
}

}  // namespace raymarch
