// Rays laid over groups of lanes, four consecutive samples to a lane: a ray of up to 4 kLanes samples is one
// pass with all its loads under way at once, and scans are over a quarter of its samples.
#pragma once
#include <initializer_list>
#include <type_traits>

#include "cuda/vector.cuh"
#include "cuda/warp.cuh"

namespace raymarch {

constexpr int64_t kLongestRow = (int64_t{1} << 31) - 1024;  // numbers of a row, so that an int counts them

// Where the numbers of a ray lie among those of all rays, if rays begin and end with whole, aligned fours.
struct WholeRow {
  int64_t first;  // the ray's first number
  int end;        // how many there are
  static constexpr int begin = 0;

  // Row `row` of `count`, of `length` numbers each; empty past the last.
  __device__ __forceinline__ WholeRow(int64_t row, int64_t count, int length)
      : first(row * length), end(row < count ? length : 0) {}
  __device__ __forceinline__ bool holds(int i) const { return i < end; }
  __device__ __forceinline__ bool reads_four(int i) const { return i < end; }
  __device__ __forceinline__ bool writes_four(int i) const { return i < end; }
};

// The same for any others: fours start at multiples of four among all numbers, so that they are aligned
// wherever rays begin; a ray's first and last may reach into its neighbours.
struct AnyRow {
  int64_t first;   // the first number of the ray's first four
  int begin, end;  // the ray's numbers, counted from `first`
  int room;        // up to here whole fours may be read

  // A run from .. to among `all` numbers; without `vectors` numbers move one by one.
  __device__ __forceinline__ AnyRow(int64_t from, int64_t to, int64_t all, bool vectors)
      : first(from & ~int64_t{3}),
        begin(int(from & 3)),
        end(int(min(to - first, kLongestRow))),
        room(vectors ? int(min(all - first, int64_t{end} + 3)) : 0) {}
  __device__ __forceinline__ bool holds(int i) const { return i >= begin && i < end; }
  __device__ __forceinline__ bool reads_four(int i) const { return i < end && i + 4 <= room; }
  __device__ __forceinline__ bool writes_four(int i) const { return i >= begin && i + 4 <= end && room > 0; }
};

// Rays of one length, back to back in memory.
struct WholeRays {
  int64_t count;
  int samples;
  __device__ __forceinline__ WholeRow row(int64_t ray) const { return {ray, count, samples}; }
};
struct AnyRays {
  int64_t count;
  int samples;
  bool vectors;
  __device__ __forceinline__ AnyRow row(int64_t ray) const {
    const int64_t from = min(ray, count) * samples;
    return {from, ray < count ? from + samples : from, count * samples, vectors};
  }
};

// Numbers i .. i + 3 of a row of `from`, i a multiple of four; those it does not hold may be anything.
template <class Row>
__device__ __forceinline__ void load_four(const real* from, const Row& row, int i, real (&to)[4]) {
  const real* at = from + row.first + i;
  float4 v = make_float4(0, 0, 0, 0);
  if (row.reads_four(i)) {
    v = *reinterpret_cast<const float4*>(at);
  } else if constexpr (!std::is_same_v<Row, WholeRow>) {
    if (row.holds(i)) v.x = at[0];
    if (row.holds(i + 1)) v.y = at[1];
    if (row.holds(i + 2)) v.z = at[2];
    if (row.holds(i + 3)) v.w = at[3];
  }
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

template <class Row>
__device__ __forceinline__ void store_four(const real (&v)[4], const Row& row, int i, real* to) {
  real* at = to + row.first + i;
  if (row.writes_four(i)) {
    *reinterpret_cast<float4*>(at) = make_float4(v[0], v[1], v[2], v[3]);
  } else if constexpr (!std::is_same_v<Row, WholeRow>) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row.holds(i + j)) at[j] = v[j];
  }
}

// The same of vectors, three numbers each.
template <class Row>
__device__ __forceinline__ void load_four(const real* from, const Row& row, int i, Vec3 (&to)[4]) {
  const real* at = from + 3 * (row.first + i);
#pragma unroll
  for (int j = 0; j < 4; ++j) to[j] = {0, 0, 0};
  if (row.reads_four(i)) {
    const float4 *v = reinterpret_cast<const float4*>(at), a = v[0], b = v[1], c = v[2];
    to[0] = {a.x, a.y, a.z}, to[1] = {a.w, b.x, b.y}, to[2] = {b.z, b.w, c.x}, to[3] = {c.y, c.z, c.w};
  } else if constexpr (!std::is_same_v<Row, WholeRow>) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row.holds(i + j)) to[j] = load3(at, j);
  }
}

template <class Row>
__device__ __forceinline__ void store_four(const Vec3 (&v)[4], const Row& row, int i, real* to) {
  real* at = to + 3 * (row.first + i);
  if (row.writes_four(i)) {
    float4* to4 = reinterpret_cast<float4*>(at);
    to4[0] = make_float4(v[0].x, v[0].y, v[0].z, v[1].x);
    to4[1] = make_float4(v[1].y, v[1].z, v[2].x, v[2].y);
    to4[2] = make_float4(v[2].z, v[3].x, v[3].y, v[3].z);
  } else if constexpr (!std::is_same_v<Row, WholeRow>) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row.holds(i + j)) store3(at, j, v[j]);
  }
}

// store_four for whole rows by all lanes of a group at once, lane l with i = base + 4 l: through `tile`, the
// group's own 12 kLanes numbers, so that each store fills sectors side by side. All lanes of the warp must
// come, equally often.
template <int kLanes>
__device__ __forceinline__ void store_fours(const Vec3 (&v)[4], const WholeRow& row, int base, real* tile,
                                            real* to) {
  const int me = lane_in_group<kLanes>();
  float4* staged = reinterpret_cast<float4*>(tile);
  staged[3 * me] = make_float4(v[0].x, v[0].y, v[0].z, v[1].x);
  staged[3 * me + 1] = make_float4(v[1].y, v[1].z, v[2].x, v[2].y);
  staged[3 * me + 2] = make_float4(v[2].z, v[3].x, v[3].y, v[3].z);
  __syncwarp();
  float4* at = reinterpret_cast<float4*>(to + 3 * (row.first + base));
  const int left = 3 * (row.end - base) / 4;
#pragma unroll
  for (int j = 0; j < 3; ++j)
    if (j * kLanes + me < left) at[j * kLanes + me] = staged[j * kLanes + me];
  __syncwarp();
}

// The first of a ray's edges, of which there is one more than samples. A ray past the last gets those of the
// first: its lanes take part in what they do not need.
template <class Rays>
__device__ __forceinline__ const real* edges_of(const Rays& rays, int64_t ray, const real* edges) {
  return edges + (ray < rays.count ? ray : 0) * (int64_t{rays.samples} + 1);
}

// kCount edges of a ray from the one `before` in front of its number i on; `edges` points at the ray's first.
// Fenceposts that it does not have are 0.
template <int kCount, class Row>
__device__ __forceinline__ void load_edges(const real* edges, const Row& row, int i, int before,
                                           real (&to)[kCount]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const int at = i + j - before - row.begin;
    to[j] = at >= 0 && at <= row.end - row.begin ? __ldg(edges + at) : real(0);
  }
}

// Middles of samples i .. i + 3.
template <class Row>
__device__ __forceinline__ void middles(const real* edges, const Row& row, int i, real (&to)[4]) {
  real e[5];
  load_edges(edges, row, i, 0, e);
#pragma unroll
  for (int j = 0; j < 4; ++j) to[j] = real(0.5) * (e[j] + e[j + 1]);
}

// How many passes the longest row of a warp takes, at least one.
template <int kLanes, class Row>
__device__ __forceinline__ int passes(const Row& row) {
  return __reduce_max_sync(~0u, unsigned(max(1, (row.end + 4 * kLanes - 1) / (4 * kLanes))));
}

// Calls body(rays, lanes) with the smallest group of lanes that takes rays of `samples` numbers in one pass.
// All `arrays` hold such rays, of one number or of a vector per sample.
constexpr int kAnyLanes = 16;  // where rays are not whole fours
template <class Body>
void with_rays(int64_t count, int64_t samples, std::initializer_list<const void*> arrays, const Body& body) {
  require(samples < kLongestRow, "on CUDA a ray may have at most 2^31 - 1024 samples");
  bool vectors = true;
  for (const void* array : arrays) vectors = vectors && aligned(array, 16);
  if (!vectors || samples % 4 != 0)
    return body(AnyRays{count, int(samples), vectors}, std::integral_constant<int, kAnyLanes>{});
  const WholeRays rays = {count, int(samples)};
  if (samples <= 32)
    body(rays, std::integral_constant<int, 8>{});
  else if (samples <= 64)
    body(rays, std::integral_constant<int, 16>{});
  else
    body(rays, std::integral_constant<int, 32>{});
}

}  // namespace raymarch
