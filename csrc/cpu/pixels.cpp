#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/room.h"
#include "math/lookup.h"
#include "math/random.h"
#include "ops.h"

namespace raymarch {

void draw_pixels(Cpu, In<int64_t, 2> counter, In<int64_t, kEdges> starts, In<int64_t, kCameras> widths,
                 Maybe<In<int64_t, kEntries>> valid, Out<int64_t, kRays> camera, Out<float, kRays, 2> xy,
                 Out<int64_t, kRays> index, int64_t stream) {
  const int64_t cameras = widths.size[0];
  require(starts.size[0] == cameras + 1, "starts must have one number more than widths");
  const int64_t choices = valid ? valid.size[0] : starts.data[cameras];
  require(cameras > 0 && choices > 0, "there are no pixels to draw from");
  const uint64_t key = random_key(counter.data[0], counter.data[1], stream);
  parallel_for(camera.size[0], 64, [&](int64_t ray) {
    const int64_t drawn = uniform_below(key, uint64_t(ray), choices);
    const int64_t pixel = valid ? valid.data[drawn] : drawn;
    require(pixel >= 0 && pixel < starts.data[cameras], "valid names a pixel outside the images");
    const int64_t image = owner(starts.data, cameras, pixel), place = pixel - starts.data[image];
    require(widths.data[image] > 0, "an image with pixels has no width");
    const int64_t row = place / widths.data[image];
    camera.data[ray] = image, index.data[ray] = pixel;
    xy.data[2 * ray] = float(place - row * widths.data[image]) + 0.5f;
    xy.data[2 * ray + 1] = float(row) + 0.5f;
  });
}

void gather_pixels(Cpu, In<uint8_t, kBytes> images, In<int64_t, kRays> index,
                   Out<float, kRays, kChannels> colour) {
  const int64_t channels = colour.size[1], pixels = images.size[0] / std::max<int64_t>(channels, 1);
  require(channels >= 1 && images.size[0] % channels == 0, "images must hold `channels` bytes per pixel");
  parallel_for(index.size[0], 16, [&](int64_t ray) {
    const int64_t from = index.data[ray];
    require(from >= 0 && from < pixels, "index points outside the images");
    for (int64_t c = 0; c < channels; ++c)
      colour.data[ray * channels + c] = float(images.data[from * channels + c]) / 255.0f;
  });
}

void gather_features(Cpu, Payload<kEntries, kChannels> maps, In<int64_t, kCameras> map_starts,
                     In<int64_t, kCameras, 2> map_size, In<int64_t, kCameras, 2> image_size,
                     In<int64_t, kRays> camera, In<float, kRays, 2> xy, Out<float, kRays, kChannels> feature,
                     int64_t mode) {
  require(mode >= 0 && mode < kLookups, "mode is not a known lookup");
  const int64_t channels = feature.size[1];
  with_dtype(maps, [&](auto maps) {
    parallel_for(camera.size[0], channels, [&](int64_t ray) {
      const int64_t image = camera.data[ray];
      require(image >= 0 && image < map_size.size[0], "camera points outside the maps");
      const int64_t width = map_size.data[2 * image], height = map_size.data[2 * image + 1];
      const int64_t start = map_starts.data[image];
      require(start >= 0 && width > 0 && height > 0 && start + width * height <= maps.size[0],
              "map_starts and map_size reach outside the maps");
      const int64_t* size = image_size.data + 2 * image;
      require(size[0] > 0 && size[1] > 0, "image_size has an image without pixels");
      const float x = xy.data[2 * ray], y = xy.data[2 * ray + 1];
      const auto cell = [&](int64_t row, int64_t column) {
        return maps.data + (start + row * width + column) * channels;
      };
      float* out = feature.data + ray * channels;
      if (mode == kNearestBelow) {
        const auto* found = cell(nearest_cell(y, size[1], height), nearest_cell(x, size[0], width));
        for (int64_t c = 0; c < channels; ++c) out[c] = float(to_float(found[c]));
        return;
      }
      const Cells u = cells_around(x, size[0], width), v = cells_around(y, size[1], height);
      const auto *a = cell(v.first, u.first), *b = cell(v.first, u.second);
      const auto *p = cell(v.second, u.first), *q = cell(v.second, u.second);
      for (int64_t c = 0; c < channels; ++c) {
        const float above = blend(float(to_float(a[c])), float(to_float(b[c])), u.share);
        const float below = blend(float(to_float(p[c])), float(to_float(q[c])), u.share);
        out[c] = blend(above, below, v.share);
      }
    });
  });
}

void draw_truth(Cpu q, In<int64_t, 2> counter, In<int64_t, kEdges> starts, In<int64_t, kCameras> widths,
                Maybe<In<int64_t, kEntries>> valid, In<uint8_t, kBytes> images,
                Maybe<Payload<kPoints, kChannels>> maps, Maybe<In<int64_t, kCameras>> map_starts,
                Maybe<In<int64_t, kCameras, 2>> map_size, In<int64_t, kCameras, 2> image_size,
                Out<int64_t, kRays> camera, Out<float, kRays, 2> xy, Out<float, kRays, kInputs> colour,
                Maybe<Out<float, kRays, kChannels>> feature, int64_t stream, int64_t mode) {
  Room<int64_t, kRays> index(camera.size[0]);
  draw_pixels(q, counter, starts, widths, valid, camera, xy, index, stream);
  gather_pixels(q, images, index, {colour.data, {colour.size[0], colour.size[1]}});
  if (!feature) return;
  require(maps && map_starts && map_size, "features need maps, map_starts and map_size");
  const Payload<kEntries, kChannels> cells = {maps.data, maps.dtype, {maps.size[0], maps.size[1]}};
  gather_features(q, cells, map_starts, map_size, image_size, constant(camera), constant(xy), feature, mode);
}

}  // namespace raymarch
