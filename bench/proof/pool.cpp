// The thread pool under ThreadSanitizer (bench/proof/threads.py): many callers, calls within calls, failures,
// forks, and chunk counts around the number of threads. Prints one line and exits with 0 if every sum is
// right; the sanitizer speaks for itself.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/parallel.h"

using raymarch::parallel_for;
using raymarch::run_chunks;

namespace {

constexpr int kCallers = 4;
#if defined(PLANTED)
int64_t shared = 0;  // a race on purpose: the run must find it
#endif

void expect(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "pool: wrong: %s\n", what);
  std::_Exit(3);
}

// Every number once, written by whichever thread has its chunk and read by the caller without a lock.
void writes_everything(int64_t n, int64_t work) {
  std::vector<int64_t> out(n, -1);
  parallel_for(n, work, [&](int64_t i) {
    out[i] = i;
#if defined(PLANTED)
    ++shared;
#endif
  });
  for (int64_t i = 0; i < n; ++i) expect(out[i] == i, "a number is missing");
}

void calls_within_calls(int64_t n) {
  std::vector<int64_t> sum(n, 0);
  run_chunks(n, [&](int64_t c) {
    std::vector<int64_t> inner(64, 0);
    parallel_for(64, 1000, [&](int64_t i) { inner[i] = c + i; });
    for (int64_t x : inner) sum[c] += x;
  });
  for (int64_t c = 0; c < n; ++c) expect(sum[c] == 64 * c + 64 * 63 / 2, "a nested sum");
}

void passes_failures_on(int64_t n) {
  bool thrown = false;
  try {
    run_chunks(n, [&](int64_t c) {
      if (c % 3 == 1) throw std::runtime_error("planned");
    });
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  expect(thrown == (n > 1), "a failure that was lost or invented");
}

void forks() {
  const pid_t child = fork();
  if (child == 0) {  // its threads are gone: it works alone
    std::vector<int64_t> out(10000, 0);
    parallel_for(10000, 100, [&](int64_t i) { out[i] = i; });
    for (int64_t i = 0; i < 10000; ++i)
      if (out[i] != i) std::_Exit(4);
    std::_Exit(0);
  }
  int status = -1;
  expect(child > 0 && waitpid(child, &status, 0) == child, "no child");
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child's sums");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 200;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller)
    callers.emplace_back([=] {
      for (int i = 0; i < rounds; ++i) {
        writes_everything((i * 37 + caller) % 200, 4096);
        writes_everything(i % 7, 1 << 20);
        calls_within_calls(i % 9);
        passes_failures_on(i % 6);
      }
    });
  for (std::thread& caller : callers) caller.join();
  for (int i = 0; i < 5; ++i) {
    forks();
    writes_everything(1000, 4096);  // the parent's pool still works
  }
  std::printf("pool: %d callers, %d rounds, 5 forks\n", kCallers, rounds);
  return 0;
}
