// How a batch is cut into blocks, and the memory that takes.
#pragma once

#include "train_model.h"

// Bytes that one row of a block keeps over all layers.
static long bytes_a_row(const Model& m, long length) {
    const Sizes& z = m.z;
    long numbers = z.qkv + 2 * z.inner + (length <= SHORT ? z.heads * round_to(length, EDGE) : 0);
    return m.s.n_layers * (2 * z.width * 4 + numbers * (long)sizeof(Number));
}

// Bytes that one token stores for the weights' gradients.
static long bytes_stored(Model& m) {
    long n = m.z.width * 4;
    for (Weight* w : m.weights()) n += (w->outs() + w->ins) * sizeof(Number);
    return n;
}

// Depends on the shapes alone, never on how many threads there are: the order of sums follows from it.
static Cut cut_for(Model& m, long batch, long length) {
    Cut c;
    c.length = length, c.padded = round_to(length, EDGE);
    c.keeps_pattern = length <= SHORT;
    // small models: what a block keeps stays in cache; others: many rows for each reading of the weights
    long rows = bytes_a_row(m, length) * 64 <= BLOCK_BYTES ? 64 : 256;
    c.group = rows / length < 1 ? 1 : rows / length;
    if (c.group > batch) c.group = batch;
    c.rows = round_to(c.group * length, EDGE);
    long blocks = (batch + c.group - 1) / c.group, most = STORE_BYTES / (bytes_stored(m) * c.rows);
    if (most < 4) most = 4;
    long waves = (blocks + most - 1) / most;
    c.blocks = (blocks + waves - 1) / waves;
    return c;
}

static void lay_room(const Model& m, const Cut& c, Room& r, Arena& a, bool learning) {
    const Sizes& z = m.z;
    long rows = c.rows, square = c.padded * c.padded, head = c.padded * z.head;
    auto most = [](long x, long y) { return x > y ? x : y; };
    r.layers.resize(m.s.n_layers);
    for (int i = 0; i < m.s.n_layers; i++) {
        Kept& k = r.layers[i];
        if (i && !learning) {  // nothing is kept: all layers share
            k = r.layers[0];
            continue;
        }
        k.x = a.take<float>(rows * z.width), k.middle = a.take<float>(rows * z.width);
        k.scale1 = a.take<float>(rows), k.scale2 = a.take<float>(rows);
        k.mean1 = a.take<float>(rows), k.mean2 = a.take<float>(rows);
        k.qkv = a.take<Number>(rows * z.qkv);
        k.inner = a.take<Number>(rows * 2 * z.inner);
        k.pattern = learning && c.keeps_pattern ? a.take<Number>(c.group * z.heads * square) : nullptr;
    }
    r.last = a.take<float>(rows * z.width), r.last_scale = a.take<float>(rows), r.last_mean = a.take<float>(rows);
    r.logits = a.take<float>(rows * z.vocab), r.wide = a.take<float>(rows * z.width);
    r.d = a.take<float>(rows * z.width);
    r.operand = a.take<Number>(rows * most(z.width, z.vocab)), r.hidden = a.take<Number>(rows * z.in);
    r.mixed = a.take<Number>(rows * z.mixed), r.d_mixed = a.take<Number>(rows * z.mixed);
    r.d_qkv = a.take<Number>(rows * z.qkv);
    for (Number** p : {&r.q, &r.k, &r.v, &r.dz, &r.k_turned, &r.v_turned, &r.k_panels, &r.v_panels, &r.q_panels, &r.z_panels})
        *p = a.take<Number>(head);
    for (Number** p : {&r.p, &r.ds, &r.p_tiles, &r.ds_tiles}) *p = a.take<Number>(square);
    r.scores = a.take<float>(EDGE * c.padded);
    for (float** p : {&r.dq, &r.dk, &r.dv}) *p = a.take<float>(head);
}

static void lay_store(Model& m, const Cut& c, Arena& a) {
    long tokens = c.blocks * c.rows;
    for (Weight* w : m.weights()) w->left = a.take<Number>(w->outs() * tokens), w->right = a.take<Number>(w->ins * tokens);
    m.d_embedded = a.take<float>(tokens * m.z.width);
    m.partials = a.take<float>(c.blocks * m.partial_size);
}

// Makes room for batches cut this way. Everything is cleared: what is padding must be finite.
static bool make_room(Model& m, const Cut& c, bool learning) {
    static_assert(sizeof(long) >= 8, "sizes need 64 bits");
    if (c.length == m.cut.length && c.group == m.cut.group && (!learning || (m.learning && c.blocks <= m.cut.blocks)))
        return true;
    m.cut = Cut{};
    m.rooms.resize(m.s.threads);
    for (int pass = 0; pass < 2; pass++) {
        Arena a{m.room.at()}, b{m.store.at()};
        for (Room& r : m.rooms) lay_room(m, c, r, a, learning);
        if (learning) lay_store(m, c, b);
        if (!pass && !(m.room.ask(a.used) && (!learning || m.store.ask(b.used)))) return false;
    }
    m.room.clear();
    m.cut = c, m.learning = learning;
    return true;
}
