// Replays calls that native_record.py wrote down against a compiled kernel, where there is no Python of its architecture.
//   native_driver KERNEL.so CASE OUTPUT
//   native_driver detect.so              prints what the detector reports
// CASE is a sequence of operations, each a code and its fields as int64; an array is its size in bytes (−1: null) and the
// bytes. OUTPUT gets, per forward, logits, best, top, logsumexp and hidden, each as such an array.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "model.h"

namespace {
[[noreturn]] void fail(const std::string& why) {
    std::fprintf(stderr, "native_driver: %s\n", why.c_str());
    std::exit(1);
}

class Reader {
public:
    explicit Reader(const char* path) : file_(std::fopen(path, "rb")) {
        if (!file_) fail(std::string("cannot open ") + path);
    }
    bool more() {
        const int c = std::fgetc(file_);
        return c != EOF && std::ungetc(c, file_) != EOF;
    }
    int64_t number() {
        int64_t x;
        if (std::fread(&x, 8, 1, file_) != 1) fail("the case is cut off");
        return x;
    }
    // Kept for as long as the program runs: the kernel shares the embedding and the adapters. Null where it was null.
    char* array() {
        const int64_t size = number();
        if (size < 0) return nullptr;
        // Off the usual alignment, as tensors of a mapped file may be.
        char* to = static_cast<char*>(std::malloc(size_t(size) + 64)) + 4;
        if (size && std::fread(to, size_t(size), 1, file_) != 1) fail("the case is cut off");
        return to;
    }
    template <class T> T* array_of() { return reinterpret_cast<T*>(array()); }

private:
    std::FILE* file_;
};

class Writer {
public:
    explicit Writer(const char* path) : file_(std::fopen(path, "wb")) {
        if (!file_) fail(std::string("cannot open ") + path);
    }
    ~Writer() { std::fclose(file_); }
    void array(const void* from, int64_t size) {
        std::fwrite(&size, 8, 1, file_);
        if (size && std::fwrite(from, size_t(size), 1, file_) != 1) fail("cannot write the output");
    }

private:
    std::FILE* file_;
};

struct Kernel {
    explicit Kernel(const char* path) : library(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
        if (!library) fail(dlerror());
        find(make, "bedplate_new"), find(turning, "bedplate_turning"), find(layer, "bedplate_layer");
        find(vector, "bedplate_vector"), find(linear, "bedplate_linear"), find(experts, "bedplate_experts");
        find(forward, "bedplate_forward"), find(free, "bedplate_free"), find(level, "bedplate_level");
    }
    template <class T> void find(T& function, const char* name) {
        function = reinterpret_cast<T>(dlsym(library, name));
        if (!function) fail(dlerror());
    }
    void* library;
    void* (*make)(const Shape*, const void*, const void*, const void*, const void*);
    int (*turning)(void*, int, int, float, const float*);
    int (*layer)(void*, int, int, int, int, int, int, float, float);
    int (*vector)(void*, int, int, int, const float*, const float*);
    int (*linear)(void*, int, int, int, int, int, const void*, const float*);
    int (*experts)(void*, int, int, int, int, int, const void*, const float*);
    int (*forward)(void*, const Call*);
    void (*free)(void*);
    const char* (*level)();
};

void run(const Kernel& kernel, Reader& in, Writer& out) {
    void* handle = nullptr;
    Shape shape{};
    std::vector<void*> keys, values;
    std::vector<std::vector<LowRank>> tables;
    auto done = [](int code) { if (code) fail("the kernel is out of memory"); };
    while (in.more()) {
        const int64_t what = in.number();
        if (what == 'N') {
            shape = *in.array_of<Shape>();
            if (handle) kernel.free(handle);
            const void *embedding = in.array(), *positions = in.array(), *types = in.array();
            handle = kernel.make(&shape, embedding, positions, types, in.array());
            done(!handle);
        } else if (what == 'T') {
            const int size = int(in.number()), interleaved = int(in.number());
            const float factor = *in.array_of<float>();
            done(kernel.turning(handle, size, interleaved, factor, in.array_of<float>()));
        } else if (what == 'L') {
            int at[6];
            for (int& x : at) x = int(in.number());
            const float* scales = in.array_of<float>();
            done(kernel.layer(handle, at[0], at[1], at[2], at[3], at[4], at[5], scales[0], scales[1]));
        } else if (what == 'V') {
            const int layer = int(in.number()), which = int(in.number()), size = int(in.number());
            const float* weight = in.array_of<float>();
            done(kernel.vector(handle, layer, which, size, weight, in.array_of<float>()));
        } else if (what == 'W' || what == 'E') {
            int at[5];
            for (int& x : at) x = int(in.number());
            const char* data = in.array();
            const auto add = what == 'W' ? kernel.linear : kernel.experts;
            done(add(handle, at[0], at[1], at[2], at[3], at[4], data, in.array_of<float>()));
        } else if (what == 'C') {  // a new cache, with what its rows held before
            keys.clear(), values.clear();
            for (int l = 0; l < shape.layers; ++l) keys.push_back(in.array()), values.push_back(in.array());
        } else if (what == 'A') {  // an adapter; they are numbered in this order
            std::vector<LowRank> table;
            for (int i = 0; i < shape.layers * PLACES; ++i) {
                LowRank low{};
                low.rank = int32_t(in.number());
                low.scaling = *in.array_of<float>();
                low.a = in.array(), low.b = in.array();
                low.scale = in.array_of<float>(), low.shift = in.array_of<float>();
                table.push_back(low);
            }
            tables.push_back(table);
        } else if (what == 'F') {
            Call call{};
            call.tokens_count = int32_t(in.number()), call.scored_count = int32_t(in.number());
            call.depth = int32_t(in.number());
            const bool states = in.number(), logits_too = in.number();
            call.places = in.array_of<int64_t>();
            call.tokens = in.array_of<int64_t>(), call.rows = in.array_of<int64_t>();
            call.positions = in.array_of<int64_t>(), call.lengths = in.array_of<int64_t>();
            call.types = in.array_of<int64_t>(), call.scored = in.array_of<int64_t>();
            std::vector<const LowRank*> adapters;
            if (const int64_t* numbers = in.array_of<int64_t>()) {
                for (int i = 0; i < call.tokens_count; ++i)
                    adapters.push_back(numbers[i] < 0 ? nullptr : tables.at(size_t(numbers[i])).data());
                call.adapters = adapters.data();
            }
            const size_t N = size_t(call.tokens_count), W = size_t(call.scored_count), V = size_t(shape.vocabulary);
            std::vector<float> logits(logits_too ? W * V : 0), top(W), logsumexp(W);
            std::vector<float> hidden(states ? N * size_t(shape.hidden) : 0);
            std::vector<int64_t> best(W);
            call.keys = keys.data(), call.values = values.data();
            call.logits = logits_too ? logits.data() : nullptr;
            call.best = best.data(), call.top = top.data(), call.logsumexp = logsumexp.data();
            call.hidden = states ? hidden.data() : nullptr;
            done(kernel.forward(handle, &call));
            out.array(logits.data(), int64_t(logits.size() * 4)), out.array(best.data(), int64_t(best.size() * 8));
            out.array(top.data(), int64_t(W * 4)), out.array(logsumexp.data(), int64_t(W * 4));
            out.array(hidden.data(), int64_t(hidden.size() * 4));
        } else {
            fail("unknown operation");
        }
    }
    if (handle) kernel.free(handle);
}
}  // namespace

int main(int count, char** arguments) {
    if (count == 2) {
        void* library = dlopen(arguments[1], RTLD_NOW);
        if (!library) fail(dlerror());
        const auto features = reinterpret_cast<uint64_t (*)()>(dlsym(library, "bedplate_features"));
        if (!features) fail(dlerror());
        std::printf("%llu\n", static_cast<unsigned long long>(features()));
        return 0;
    }
    if (count != 4) fail("usage: native_driver KERNEL.so CASE OUTPUT");
    const Kernel kernel(arguments[1]);
    Reader in(arguments[2]);
    Writer out(arguments[3]);
    run(kernel, in, out);
    std::puts(kernel.level());
}
