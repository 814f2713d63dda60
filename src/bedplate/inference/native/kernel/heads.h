// From the products of queries, keys and values to where attention finds them: normalised and turned to their positions.
#pragma once
#include "mixing.h"
#include "norms.h"

template <class Arithmetic>
class Heads {
public:
    Heads(const Model& model, const Call& call, Arena& memory, int threads, Mixing<Arithmetic>& mixing)
        : m_(model), c_(call), s_(model.shape), threads_(threads), mixing_(mixing) {
        for (const Turning& one : m_.turnings) turns_.push_back(memory.array<float>(c_.tokens_count * int64_t(one.size)));
        if (s_.whole_norm) raw_ = memory.array<float>(c_.tokens_count * int64_t(m_.q_size() + m_.kv_size()));
    }

    // Cosines and sines of a token's position.
    void prepare(int64_t t) {
        for (size_t n = 0; n < turns_.size(); ++n) {
            const Turning& one = m_.turnings[n];
            const int half = one.size / 2;
            float *cosine = turns_[n] + t * one.size, *sine = cosine + half;
            for (int i = 0; i < half; ++i) {
                float angle = static_cast<float>(c_.positions[t]) * one.frequencies[i];
                cosine[i] = cosf(angle) * one.factor, sine[i] = sinf(angle) * one.factor;
            }
        }
    }

    // A head of one token as its product gave it. Where norms go over whole projections it waits for the others.
    void keep(int l, int place, int head, int64_t t, float* y) {
        const int D = m_.layer(l).head_dim;
        if (place != V && s_.whole_norm) {
            std::memcpy(waiting(place, t) + head * D, y, size_t(D) * 4);
            return;
        }
        if (place != V) norm(l, place, D, y);
        else if (const float* ones = m_.layer(l).weight[VALUE_NORM]) norm_row(y, D, s_.eps, false, ones, nullptr, y);
        finish(l, place, head, t, y);
    }

    // Those that waited. Ends with a barrier where there are any.
    void keep_waiting(int l, bool queries, bool keys, int thread, Pool& pool) {
        if (!s_.whole_norm) return;
        const int64_t items = 2 * int64_t(c_.tokens_count);
        for (int64_t i = share(items, thread, threads_); i < share(items, thread + 1, threads_); ++i) {
            const int place = i % 2 ? K : Q, D = m_.layer(l).head_dim, heads = m_.layer(l).linear[place].out / D;
            if (!(place == Q ? queries : keys)) continue;
            float* row = waiting(place, i / 2);
            norm(l, place, heads * D, row);
            for (int h = 0; h < heads; ++h) finish(l, place, h, i / 2, row + h * D);
        }
        pool.barrier();
    }

private:
    float* waiting(int place, int64_t t) const {
        return raw_ + t * (m_.q_size() + m_.kv_size()) + (place == Q ? 0 : m_.q_size());
    }

    void norm(int l, int place, int size, float* y) const {
        const Layer& layer = m_.layers[size_t(l)];
        const int which = place == Q ? QUERY_NORM : KEY_NORM;
        if (layer.weight[which]) norm_row(y, size, s_.eps, s_.layer_norm, layer.weight[which], layer.bias[which], y);
    }

    void finish(int l, int place, int head, int64_t t, float* y) {
        const int number = m_.layer(l).turning, D = m_.layer(l).head_dim;
        if (place != V && number >= 0) turn(m_.turnings[size_t(number)], turns_[size_t(number)], t, y);
        if (place == Q) copy(y, D, mixing_.query(l, head, t));
        else copy(y, D, place == K ? mixing_.key(l, head, t) : mixing_.value(l, head, t));
    }

    static void turn(const Turning& by, const float* turns, int64_t t, float* y) {
        const int half = by.size / 2;
        const float *cosine = turns + t * by.size, *sine = cosine + half;
        if (by.interleaved) {
            for (int i = 0; i < half; ++i) {
                float a = y[2 * i], b = y[2 * i + 1];
                y[2 * i] = a * cosine[i] - b * sine[i], y[2 * i + 1] = b * cosine[i] + a * sine[i];
            }
            return;
        }
        for (int i = 0; i < half; ++i) {
            float a = y[i], b = y[i + half];
            y[i] = a * cosine[i] - b * sine[i], y[i + half] = b * cosine[i] + a * sine[i];
        }
    }

    template <class To>
    static void copy(const float* y, int D, To* to) {
        for (int i = 0; i < D; i += LANES) store(to + i, load(y + i));
    }

    const Model& m_;
    const Call& c_;
    const Shape& s_;
    const int threads_;
    Mixing<Arithmetic>& mixing_;
    std::vector<float*> turns_;
    float* raw_ = nullptr;
};
