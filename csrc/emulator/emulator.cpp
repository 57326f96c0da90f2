// Runs a block's threads as coroutines: ucontext gives each a stack, setjmp and longjmp switch between them.
#include "emulator/emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ops.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes)
#endif

Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace raymarch {

// The ops' CPU half has no place in a core that emulates: its arrays go to the kernels (bind.cpp).
#define RM_OP(name, ...) \
  void name(Cpu, __VA_ARGS__) { throw std::logic_error(#name ": this core has kernels only"); }
#include "ops.def"
#undef RM_OP

namespace emulator {

constexpr size_t kCanary = 256;
alignas(128) unsigned char shared_memory[kShared + kCanary];

namespace {

constexpr size_t kStack = 256 << 10;
constexpr unsigned kMostThreads = 1024;

enum class State { kReady, kWarp, kBlock, kDone };

struct Copy {
  void* to;
  const void* from;
  int valid, bytes;
};

struct Thread {
  State state = State::kDone;
  unsigned mask = 0;
  void* mine = nullptr;
  const char* where = nullptr;
  bool yes = true;
  std::vector<Copy> copies;
  bool entered = false;  // has a frame to come back to
  char* stack = nullptr;
  void* fake_stack = nullptr;
  ucontext_t context;
  jmp_buf frame;
};

std::vector<std::unique_ptr<Thread>> threads;
unsigned alive = 0, running = kMostThreads;
bool block_says = true;
jmp_buf scheduler;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;
void* scheduler_fake_stack = nullptr;
const std::function<void()>* body = nullptr;
std::string failure;

void leave_for(const void* stack, size_t size, void** keep) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(keep, stack, size);
#endif
}
void arrived(void* kept, const void** from = nullptr, size_t* size = nullptr) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(kept, from, size);
#endif
}

void back_to_scheduler(Thread& me) {
  leave_for(scheduler_stack, scheduler_stack_size, &me.fake_stack);
  if (_setjmp(me.frame) == 0) _longjmp(scheduler, 1);
  arrived(me.fake_stack, &scheduler_stack, &scheduler_stack_size);
}

// A thread's first frame; it is used again by the next block.
void live() {
  arrived(nullptr, &scheduler_stack, &scheduler_stack_size);
  for (;;) {
    Thread& me = *threads[running];
    (*body)();
    me.copies.clear();
    me.state = State::kDone;
    back_to_scheduler(me);
  }
}

void resume(unsigned number) {
  Thread& t = *threads[number];
  running = number;
  threadIdx.x = number;
  leave_for(t.stack, kStack, &scheduler_fake_stack);
  if (_setjmp(scheduler) == 0) {
    if (t.entered) _longjmp(t.frame, 1);
    t.entered = true;
    getcontext(&t.context);
    t.context.uc_stack = {t.stack, 0, kStack};
    t.context.uc_link = nullptr;
    makecontext(&t.context, live, 0);
    setcontext(&t.context);
  }
  arrived(scheduler_fake_stack);
  running = kMostThreads;
  if (!failure.empty()) {
    for (auto& thread : threads) thread->entered = false, thread->copies.clear();
    throw std::runtime_error(std::exchange(failure, {}));
  }
}

// Lets a warp's lanes go on if all of the mask wait at one place.
bool release_warp(unsigned warp, unsigned mask, const char* where, void (*all)(void* (&)[32], void*),
                  void* with) {
  void* lanes[32] = {};
  for (unsigned i = 0; i < 32; ++i) {
    const unsigned number = 32 * warp + i;
    if (!(mask >> i & 1) || number >= blockDim.x || threads[number]->state == State::kDone) continue;
    const Thread& t = *threads[number];
    if (t.state != State::kWarp || t.mask != mask || t.where != where) return false;
    lanes[i] = t.mine;
  }
  all(lanes, with);
  for (unsigned i = 0; i < 32; ++i)
    if (lanes[i]) threads[32 * warp + i]->state = State::kReady;
  return true;
}

bool release_block() {
  bool all = true;
  for (unsigned i = 0; i < blockDim.x; ++i) {
    const Thread& t = *threads[i];
    if (t.state == State::kDone) continue;
    if (t.state != State::kBlock) return false;
    all = all && t.yes;
  }
  for (unsigned i = 0; i < blockDim.x; ++i)
    if (threads[i]->state == State::kBlock) threads[i]->state = State::kReady;
  block_says = all;
  return true;
}

struct Order {
  enum { kForward, kBackward, kShuffled } way = kForward;
  std::mt19937 dice;
  Order() {
    const char* said = std::getenv("RAYMARCH_EMULATE_ORDER");
    if (!said || std::string(said) == "forward") return;
    way = std::string(said) == "backward" ? kBackward : kShuffled;
    dice.seed(unsigned(std::atoi(said)));
  }
  void arrange(std::vector<unsigned>& numbers) {
    for (unsigned i = 0; i < numbers.size(); ++i) numbers[i] = i;
    if (way == kBackward) std::reverse(numbers.begin(), numbers.end());
    if (way == kShuffled) std::shuffle(numbers.begin(), numbers.end(), dice);
  }
};

std::string name_of(unsigned number) {
  return "thread " + std::to_string(number) + " of block " + std::to_string(blockIdx.x) + " (" +
         std::to_string(gridDim.x) + " blocks of " + std::to_string(blockDim.x) + ")";
}

void run_block(size_t shared, std::vector<unsigned>& order, Order& way) {
  ASAN_UNPOISON_MEMORY_REGION(shared_memory, kShared + kCanary);
  memset(shared_memory, 0xff, shared);
  memset(shared_memory + shared, 0xa5, kCanary);
  ASAN_POISON_MEMORY_REGION(shared_memory + shared, kShared + kCanary - shared);
  for (unsigned i = 0; i < blockDim.x; ++i) threads[i]->state = State::kReady;
  for (alive = blockDim.x; alive > 0;) {
    bool moved = false;
    way.arrange(order);
    for (const unsigned number : order) {
      Thread& t = *threads[number];
      if (t.state != State::kReady) continue;
      moved = true;
      resume(number);
      if (t.state != State::kDone) continue;
      --alive;  // those who wait may have waited for this one
      release_block();
      for (unsigned i = number / 32 * 32; i < std::min(number / 32 * 32 + 32, blockDim.x); ++i)
        if (threads[i]->state == State::kWarp)
          throw std::runtime_error(name_of(number) + " returns while lane " + std::to_string(i % 32) +
                                   " waits for it in " + threads[i]->where);
    }
    if (moved) continue;
    for (const unsigned number : order)
      if (threads[number]->state == State::kWarp)
        throw std::runtime_error(name_of(number) + " waits for ever in " + threads[number]->where);
    throw std::runtime_error("block " + std::to_string(blockIdx.x) + " waits for ever at a barrier");
  }
  ASAN_UNPOISON_MEMORY_REGION(shared_memory, kShared + kCanary);
  for (size_t i = 0; i < kCanary; ++i)
    if (shared_memory[shared + i] != 0xa5)
      throw std::runtime_error("block " + std::to_string(blockIdx.x) + " writes past its shared memory of " +
                               std::to_string(shared) + " bytes");
}

void make_threads(unsigned count) {
  while (threads.size() < count) {
    auto thread = std::make_unique<Thread>();
    void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    thread->stack = static_cast<char*>(stack);
    threads.push_back(std::move(thread));
  }
}

}  // namespace

void fail(const char* what) {
  if (running == kMostThreads) throw std::runtime_error(what);
  failure = name_of(running) + " " + what;
  threads[running]->state = State::kDone;
  back_to_scheduler(*threads[running]);
  std::abort();  // nobody comes back to a thread that failed
}

void together(unsigned mask, void* mine, const char* where, void (*all)(void* (&)[32], void*), void* with) {
  Thread& me = *threads[running];
  if (!(mask >> running % 32 & 1)) fail("is not in the mask of lanes it calls together");
  me.state = State::kWarp, me.mask = mask, me.mine = mine, me.where = where;
  if (!release_warp(running / 32, mask, where, all, with)) back_to_scheduler(me);
}

bool block_together(bool yes) {
  Thread& me = *threads[running];
  me.state = State::kBlock, me.yes = yes;
  if (!release_block()) back_to_scheduler(me);
  return block_says;
}

void copy_later(void* to, const void* from, int valid, int bytes) {
  memset(to, 0xff, bytes);
  threads[running]->copies.push_back({to, from, valid, bytes});
}

void copy_now() {
  for (const Copy& copy : threads[running]->copies) {
    memset(copy.to, 0, copy.bytes);
    memcpy(copy.to, copy.from, copy.valid);
  }
  threads[running]->copies.clear();
}

void run(unsigned grid, unsigned block, size_t shared, const std::function<void()>& kernel) {
  static std::mutex one_launch;
  static Order order;
  const std::lock_guard<std::mutex> lock(one_launch);
  if (block == 0 || block > kMostThreads || shared > kShared)
    throw std::runtime_error("a launch of " + std::to_string(block) + " threads and " +
                             std::to_string(shared) + " bytes of shared memory");
  make_threads(block);
  gridDim.x = grid, blockDim.x = block;
  body = &kernel;
  std::vector<unsigned> numbers(block);
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) run_block(shared, numbers, order);
}

}  // namespace emulator
}  // namespace raymarch
