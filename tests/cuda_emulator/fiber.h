// Stacks to run on, and the switch between them: a few instructions on x86-64, ucontext elsewhere. ucontext would ask
// the kernel for the signal mask at every switch, which takes most of a run's time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#else
inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

#ifdef __x86_64__
// Pushes the registers that a function call must preserve, exchanges the stacks, pops. Weak: several files include this.
extern "C" void sce_fast_switch_stack(void** save, void* stack);
asm(R"(
.text
.weak sce_fast_switch_stack
.type sce_fast_switch_stack, @function
sce_fast_switch_stack:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size sce_fast_switch_stack, .-sce_fast_switch_stack
)");
#endif

namespace sce_fast::emulator {

class Fiber {
 public:
  Fiber() = default;  // the stack of the caller that starts the others

  // A fiber that runs `entry` when it is switched to; `entry` never returns.
  explicit Fiber(void (*entry)()) : memory_(new char[kStackBytes]), bottom_(memory_.get()), size_(kStackBytes) {
#ifdef __x86_64__
    auto* top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(bottom_) + size_) & ~uintptr_t{15});
    *--top = nullptr;  // the return address of `entry`; also gives the alignment of a call
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    stack_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = memory_.get();
    context_.uc_stack.ss_size = size_;
    makecontext(&context_, entry, 0);
#endif
  }

  // Continues `to`; returns when another fiber switches back.
  void switch_to(Fiber& to) {
    __sanitizer_start_switch_fiber(&fake_stack_, to.bottom_, to.size_);
    origin_ = this;
#ifdef __x86_64__
    sce_fast_switch_stack(&stack_, to.stack_);
#else
    swapcontext(&context_, &to.context_);
#endif
    arrived(fake_stack_);
  }

  // `entry` calls this first.
  static void entered() { arrived(nullptr); }

 private:
  static constexpr size_t kStackBytes = 96 << 10;  // three times what a thread of the widest kernel takes

  // Tells the sanitizer about the switch, and gets the bounds of the previous stack from it.
  static void arrived(void* fake_stack) {
    __sanitizer_finish_switch_fiber(fake_stack, &origin_->bottom_, &origin_->size_);
  }

  static inline Fiber* origin_ = nullptr;
  std::unique_ptr<char[]> memory_;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
#ifdef __x86_64__
  void* stack_ = nullptr;
#else
  ucontext_t context_{};
#endif
};

}  // namespace sce_fast::emulator
