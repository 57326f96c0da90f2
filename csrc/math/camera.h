// From a pixel to a ray: lens models, distortion and its inverse, and the vjps to pose and lens.
//
//   u, v         image plane: (x - cx)/fx to the right, (y - cy)/fy downwards
//   local ray    in the camera's frame: x right, y up, looking along -z
//   offset       where the ray starts, relative to the camera's centre; zero for most lenses
#pragma once
#include "math/angle.h"
#include "math/vec.h"

namespace raymarch {

enum LensModel : int64_t {  // the order of LENSES in raymarch/types.py
  kPerspective,
  kFisheye,
  kEquirectangular,
  kOrthophoto,
  kFisheye624,
  kOdsLeft,
  kOdsRight,
  kVr180Left,
  kVr180Right,
  kLensModels
};
enum Compose : int64_t { kComposeCamera, kComposeWorld, kComposes };

constexpr double kShortest = 8.881784197001252e-16;  // directions are divided by no less
constexpr int kMostTrials = 40;                      // of the search that undoes distortion
constexpr real kEpsilon = RM_DOUBLE ? real(2.2e-16) : real(1.2e-7);

struct Vec2 {
  real x, y;
};
RM_HD Vec2 operator-(Vec2 a, Vec2 b) { return {a.x - b.x, a.y - b.y}; }
RM_HD Vec2 operator*(real s, Vec2 a) { return {s * a.x, s * a.y}; }
RM_HD real dot(Vec2 a, Vec2 b) { return a.x * b.x + a.y * b.y; }

struct Lens {
  real fx, fy, cx, cy;
  real k[12];
  int64_t model;
  real half_eyes;  // half the distance between the eyes of a stereo panorama
};

// A map of the plane at one point: its value, its Jacobian, and whether the point lies before the fold.
struct PlaneMap {
  Vec2 to;
  real xx, xy, yx, yy;  // d to.x / dx, d to.x / dy, ...
  bool unfolded;
};

// OpenCV's model with radial k1..k4 (powers 2, 4, 6, 8 of the radius) and tangential p1, p2.
RM_HD PlaneMap distort(const Lens& lens, Vec2 p) {
  const real x = p.x, y = p.y, r = x * x + y * y, p1 = lens.k[4], p2 = lens.k[5];
  const real d = 1 + r * (lens.k[0] + r * (lens.k[1] + r * (lens.k[2] + r * lens.k[3])));
  const real slope = 2 * (lens.k[0] + r * (2 * lens.k[1] + r * (3 * lens.k[2] + 4 * r * lens.k[3])));
  PlaneMap m;
  m.to = {x * d + 2 * p1 * x * y + p2 * (r + 2 * x * x), y * d + 2 * p2 * x * y + p1 * (r + 2 * y * y)};
  m.xx = d + slope * x * x + 2 * p1 * y + 6 * p2 * x;
  m.xy = m.yx = slope * x * y + 2 * p1 * x + 2 * p2 * y;
  m.yy = d + slope * y * y + 2 * p2 * x + 6 * p1 * y;
  m.unfolded = d > 0;
  return m;
}

// FISHEYE624: tangential p0 p1 and thin prism s0..s3.
RM_HD PlaneMap shear624(const Lens& lens, Vec2 p) {
  const real x = p.x, y = p.y, q = x * x + y * y, p0 = lens.k[6], p1 = lens.k[7];
  const real s0 = lens.k[8], s1 = lens.k[9], s2 = lens.k[10], s3 = lens.k[11];
  const real dx = 2 * (s0 + 2 * s1 * q), dy = 2 * (s2 + 2 * s3 * q);
  PlaneMap m;
  m.to = {x + (2 * x * x + q) * p0 + 2 * x * y * p1 + q * (s0 + s1 * q),
          y + (2 * y * y + q) * p1 + 2 * x * y * p0 + q * (s2 + s3 * q)};
  m.xx = 1 + 6 * x * p0 + 2 * y * p1 + dx * x;
  m.xy = 2 * y * p0 + 2 * x * p1 + dx * y;
  m.yx = 2 * x * p1 + 2 * y * p0 + dy * x;
  m.yy = 1 + 6 * y * p1 + 2 * x * p0 + dy * y;
  m.unfolded = true;
  return m;
}

// FISHEYE624: angle to radius, as a map of the plane that leaves y alone.
RM_HD PlaneMap radius624(const Lens& lens, Vec2 p) {
  const real q = p.x * p.x;
  real sum = real(0), slope = real(0);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = 5; i >= 0; --i) {
    sum = (sum + lens.k[i]) * q;
    slope = (slope + (3 + 2 * i) * lens.k[i]) * q;
  }
  return {{p.x * (1 + sum), p.y}, 1 + slope, 0, 0, 1, true};
}

struct Inverse {
  Vec2 from;
  bool converged;
};

// Where does a map take the value `want`? Newton's steps from `start`, halved while they do not come nearer
// or would cross the fold, until the residual is rounding. Where nothing is found, `want` comes back.
template <class Map>
RM_HD Inverse invert(const Map& map, Vec2 want, Vec2 start) {
  const real rounding = square(kEpsilon) * (real(0.01) + dot(want, want));
  Vec2 at = start, step = {0, 0};
  real best = real(INFINITY);
  for (int i = 0; i < kMostTrials; ++i) {
    const Vec2 tried = at - step;
    const PlaneMap m = map(tried);
    const Vec2 off = m.to - want;
    const real error = dot(off, off), det = m.xx * m.yy - m.xy * m.yx;
    if (error < best && m.unfolded && m.xx + m.yy > 0 && det > real(1e-6)) {
      best = error, at = tried;
      if (best <= rounding) break;
      step = {(off.x * m.yy - off.y * m.xy) / det, (off.y * m.xx - off.x * m.yx) / det};
    } else {
      if (best <= 64 * rounding) break;
      step = real(0.5) * step;
    }
  }
  const bool converged = best <= 4096 * rounding;  // 64 roundings
  return {converged ? at : want, converged};
}

RM_HD Inverse undistort(const Lens& lens, Vec2 want, Vec2 start) {
  const bool plain = lens.k[0] == 0 && lens.k[1] == 0 && lens.k[2] == 0 && lens.k[3] == 0 && lens.k[4] == 0 &&
                     lens.k[5] == 0;
  if (plain) return {want, true};
  return invert([&](Vec2 p) { return distort(lens, p); }, want, start);
}

struct LocalRay {
  Vec3 offset, direction;
  Vec2 plane;  // undistorted: where the search for a neighbouring pixel may start
  bool converged;
};

RM_HD LocalRay fisheye_ray(const Lens& lens, Vec2 uv, Vec2 start) {
  const Inverse p = undistort(lens, uv, start);
  const real angle = std::sqrt(dot(p.from, p.from)), theta = angle < real(kPi) ? angle : real(kPi);
  const real s = sinc(theta);
  return {{}, {s * p.from.x, -s * p.from.y, -cosine(theta)}, p.from, p.converged && angle <= real(kPi)};
}

RM_HD LocalRay fisheye624_ray(const Lens& lens, Vec2 uv, Vec2 start) {
  const Inverse m = invert([&](Vec2 p) { return shear624(lens, p); }, uv, start);
  const real radius = std::sqrt(dot(m.from, m.from));
  const Inverse angle = invert([&](Vec2 p) { return radius624(lens, p); }, {radius, 0}, {0, 0});
  const real theta = angle.from.x < real(kPi) ? angle.from.x : real(kPi), ahead = cosine(theta);
  // Length 1/cos, so that the norm turns z depth into distance; beyond a right angle there is no z depth.
  const real length = ahead > real(1e-6) ? 1 / ahead : real(1);
  const real s = length * (radius > 0 ? sine(theta) / radius : real(1));
  return {{},
          {s * m.from.x, -s * m.from.y, -length * ahead},
          m.from,
          m.converged && angle.converged && angle.from.x <= real(kPi)};
}

// Longitude theta (0 ahead, growing to the left) and the height v above the horizon, in half turns.
RM_HD Vec3 panorama_direction(real theta, real height) {
  const real ring = cosine(real(kPi) * height);
  return {-sine(theta) * ring, sine(real(kPi) * height), -cosine(theta) * ring};
}

// Each eye of an omnidirectional stereo panorama moves on a circle; those of VR180 stand still.
RM_HD LocalRay panorama_ray(const Lens& lens, Vec2 uv) {
  const bool vr180 = lens.model == kVr180Left || lens.model == kVr180Right;
  const bool left = lens.model == kOdsLeft || lens.model == kVr180Left;
  const real theta = -real(kPi) * (vr180 ? uv.x / 2 : uv.x);
  const real eye = lens.model == kEquirectangular ? real(0) : left ? -lens.half_eyes : lens.half_eyes;
  const Vec3 offset = vr180 ? Vec3{eye, 0, 0} : Vec3{eye * cosine(theta), 0, -eye * sine(theta)};
  return {offset, panorama_direction(theta, -uv.y), uv, true};
}

// The ray through pixel (x, y), in the camera's frame, not normalised. Panoramas and orthophotos have no
// distortion. An unknown lens gives NaN.
RM_HD LocalRay local_ray(const Lens& lens, real x, real y, Vec2 start) {
  const Vec2 uv = {(x - lens.cx) / lens.fx, (y - lens.cy) / lens.fy};
  if (lens.model == kPerspective) {
    const Inverse p = undistort(lens, uv, start);
    return {{}, {p.from.x, -p.from.y, -1}, p.from, p.converged};
  }
  if (lens.model == kFisheye) return fisheye_ray(lens, uv, start);
  if (lens.model == kFisheye624) return fisheye624_ray(lens, uv, start);
  if (lens.model == kOrthophoto) return {{uv.x, -uv.y, 0}, {0, 0, -1}, uv, true};
  if (lens.model >= 0 && lens.model < kLensModels) return panorama_ray(lens, uv);
  return {{}, {NAN, NAN, NAN}, uv, false};
}

RM_HD real longer(real length) { return length > real(kShortest) ? length : real(kShortest); }
RM_HD Vec3 unit(Vec3 v) { return (1 / longer(std::sqrt(dot(v, v)))) * v; }

// The solid angle of a pixel: how far the direction moves for one pixel right, times one pixel down.
RM_HD real pixel_area(const Lens& lens, real x, real y, const LocalRay& here) {
  const Vec3 d = unit(here.direction);
  const Vec3 right = d - unit(local_ray(lens, x + 1, y, here.plane).direction);
  const Vec3 down = d - unit(local_ray(lens, x, y + 1, here.plane).direction);
  return std::sqrt(dot(right, right) * dot(down, down));
}

RM_HD Mat34 identity34() { return {{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0}}; }

// The rotations' product, with t for the translation.
RM_HD Mat34 turned(const Mat34& a, const Mat34& b, Vec3 t) {
  Mat34 c;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int j = 0; j < 3; ++j) {
    const Vec3 column = rotate(a, {b.m[j], b.m[4 + j], b.m[8 + j]});
    c.m[j] = column.x, c.m[4 + j] = column.y, c.m[8 + j] = column.z;
  }
  c.m[3] = t.x, c.m[7] = t.y, c.m[11] = t.z;
  return c;
}

// camera: pose then adjustment, in the camera's own axes, [R dR | t + R dt].
// world: the camera turns about its centre and moves along the world's axes, [dR R | t + dt].
RM_HD Mat34 composed(const Mat34& pose, const Mat34& adjustment, bool world) {
  const Vec3 t = translation(pose), dt = translation(adjustment);
  if (world) return turned(adjustment, pose, t + dt);
  return turned(pose, adjustment, t + rotate(pose, dt));
}

struct WorldRay {
  Vec3 origin, direction;
  real norm;  // of the direction before it was made a unit
};
RM_HD WorldRay world_ray(const Mat34& pose, const LocalRay& ray) {
  const Vec3 u = rotate(pose, ray.direction);
  const real norm = longer(std::sqrt(dot(u, u)));
  return {translation(pose) + rotate(pose, ray.offset), (1 / norm) * u, norm};
}

// a b^T + c d^T in the rotation's place, t in the translation's.
RM_HD Mat34 outer_sum(Vec3 a, Vec3 b, Vec3 c, Vec3 d, Vec3 t) {
  return {{a.x * b.x + c.x * d.x, a.x * b.y + c.x * d.y, a.x * b.z + c.x * d.z, t.x, a.y * b.x + c.y * d.x,
           a.y * b.y + c.y * d.y, a.y * b.z + c.y * d.z, t.y, a.z * b.x + c.z * d.x, a.z * b.y + c.z * d.y,
           a.z * b.z + c.z * d.z, t.z}};
}

// The gradient of a ray's direction before it was made a unit, in the world.
RM_HD Vec3 unit_vjp(const WorldRay& ray, Vec3 grad_direction) {
  const bool vanished = !(ray.norm > real(kShortest));  // a direction of length zero stays zero
  const Vec3 across = grad_direction - dot(ray.direction, grad_direction) * ray.direction;
  return (vanished ? real(0) : 1 / ray.norm) * across;
}

// What one ray says about its camera: the gradient to the adjustment, or else to the pose.
RM_HD Mat34 world_ray_vjp(const Mat34& pose, const Mat34& adjustment, bool world, const LocalRay& ray,
                          Vec3 grad_origin, Vec3 grad_direction, bool to_adjustment) {
  const WorldRay out = world_ray(composed(pose, adjustment, world), ray);
  const Vec3 g_u = unit_vjp(out, grad_direction), g_o = grad_origin;
  const Vec3 d = ray.direction, offset = ray.offset;
  if (to_adjustment) {
    if (world) return outer_sum(g_u, rotate(pose, d), g_o, rotate(pose, offset), g_o);
    const Vec3 local = rotate_transposed(pose, g_o);
    return outer_sum(rotate_transposed(pose, g_u), d, local, offset, local);
  }
  if (world)
    return outer_sum(rotate_transposed(adjustment, g_u), d, rotate_transposed(adjustment, g_o), offset, g_o);
  return outer_sum(g_u, rotate(adjustment, d), g_o, rotate(adjustment, offset) + translation(adjustment),
                   g_o);
}

// The slope of sinc x, over x; in powers of x x where the difference would cancel.
RM_HD real sinc_slope(real x) {
  const real q = x * x;
  if (q > real(0.1)) return (cosine(x) - sinc(x)) / q;
  return -1 / real(3) + q * (1 / real(30) - q * (1 / real(840) - q * (1 / real(45360) - q / real(3991680))));
}

// From the gradient of the direction of a lens that `can_refine`, not yet a unit, to that of its plane point.
RM_HD Vec2 plane_vjp(const Lens& lens, Vec2 p, Vec3 g) {
  if (lens.model == kPerspective) return {g.x, -g.y};
  const real angle = std::sqrt(dot(p, p)), s = sinc(angle);
  const real along = sinc_slope(angle) * (g.x * p.x - g.y * p.y) + s * g.z;
  return {s * g.x + along * p.x, -s * g.y + along * p.y};
}

RM_HD bool can_refine(int64_t model) { return model == kPerspective || model == kFisheye; }

// fx fy cx cy k1 k2 k3 k4 p1 p2 and two zeros.
struct LensNumbers {
  real m[12];
};

// What one ray says about its lens; g is the gradient of its direction in the camera's frame, not yet a unit.
// `distort` takes the ray's plane point p to the pixel's uv. So, by the implicit function theorem and however
// p was found, dp = J^-1 (d uv - dk d distort / dk), with J the Jacobian of `distort` at p. A ray that
// ignores its distortion says nothing, and of a lens that cannot be refined it says NaN.
RM_HD LensNumbers lens_vjp(const Lens& lens, real x, real y, const LocalRay& ray, Vec3 g) {
  if (!can_refine(lens.model)) return {{NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, 0, 0}};
  if (!ray.converged) return {};
  const Vec2 p = ray.plane, g_p = plane_vjp(lens, p, g);
  const PlaneMap m = distort(lens, p);
  const real det = m.xx * m.yy - m.xy * m.yx;
  const Vec2 q = {(m.yy * g_p.x - m.yx * g_p.y) / det, (m.xx * g_p.y - m.xy * g_p.x) / det};
  const real r = dot(p, p), radial = -r * dot(p, q), both = -2 * p.x * p.y;
  const Vec2 g_c = {-q.x / lens.fx, -q.y / lens.fy};
  return {{g_c.x * (x - lens.cx) / lens.fx, g_c.y * (y - lens.cy) / lens.fy, g_c.x, g_c.y, radial, r * radial,
           r * r * radial, r * r * r * radial, both * q.x - (r + 2 * p.y * p.y) * q.y,
           both * q.y - (r + 2 * p.x * p.x) * q.x, 0, 0}};
}

// The gradient of a ray's direction in the camera's frame, not yet a unit.
RM_HD Vec3 local_vjp(const Mat34& pose, const LocalRay& ray, Vec3 grad_direction) {
  return rotate_transposed(pose, unit_vjp(world_ray(pose, ray), grad_direction));
}

}  // namespace raymarch
