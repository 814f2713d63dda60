// detect.cpp with a system that answers what a test wants, and whether its handlers of signals are as they were before it.
#include <cpuid.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>

namespace {
int refusal = 0;
bool handlers_stay = false;
long permission(long number, long request, long component) {
    errno = number == SYS_arch_prctl && request == 0x1023 && component == 18 ? refusal : 1001;
    return errno ? -1 : 0;
}
int set_handler(int signal, const struct sigaction* to, struct sigaction* before) {
    return handlers_stay ? 0 : sigaction(signal, to, before);
}
}  // namespace
#define syscall(number, request, component) permission(number, request, component)
#define sigaction(signal, to, before) set_handler(signal, to, before)

#include "detect.cpp"

#undef sigaction
// refused: errno's number, or 0. stay: SIGILL's handler is that of native_traps.cpp, and stays.
extern "C" __attribute__((visibility("default"))) int answer(int refused, int stay) {
    refusal = refused, handlers_stay = stay;
    struct sigaction before {}, after {};
    sigaction(SIGILL, nullptr, &before);
    const int code = bedplate_tiles();
    sigaction(SIGILL, nullptr, &after);
    return before.sa_sigaction == after.sa_sigaction ? code : 1000;
}
