// A loop on XLA's threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace pollux {

constexpr int64_t kSpins = 2000;  // some 50 microseconds

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// f(0..count-1) on all threads of the pool. A worker that comes late finds nothing left and touches no memory of the caller.
template <typename F>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t count, F f) {
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  auto work = [progress, count, f] {
    for (int64_t i; (i = progress->next.fetch_add(1)) < count;) {
      f(i);
      progress->done.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t workers = std::min<int64_t>(pool.num_threads(), count);
  for (int64_t i = 1; i < workers; i++) pool.Schedule([work] { work(); });
  work();
  for (int64_t spins = 0; progress->done.load(std::memory_order_acquire) < count; spins++)
    spins < kSpins ? pause() : std::this_thread::yield();  // a worker may have lost its core to another program
}

}  // namespace pollux
