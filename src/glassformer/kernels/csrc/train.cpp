// A training step of a plain transformer: loss and gradient of a batch, then the optimiser's step.
//
// It knows the shapes it is told and the flat buffers it is given. Names, files, schedules and which
// designs it may be asked for are Python's (native.py).

#include <algorithm>

#include "train_gradient.h"
#include "optimizer.h"

#pragma GCC visibility push(default)
extern "C" {

int gf_sizes(int32_t* out, int room) { return sizes_of<TrainShape, Parameter, Rules, Dropout>(out, room); }

const char* gf_arithmetic() { return arithmetic<Operand>().name; }

Model* gf_create(const TrainShape* shape, const Parameter* parameters, int count, const float* cosines, const float* sines,
                 float* master, float* grad, float* first, float* second, void* working) {
    auto m = std::make_unique<Model>();
    m->s = *shape;
    m->parameters.assign(parameters, parameters + count);
    m->master = master, m->grad = grad, m->first = first, m->second = second;
    m->working = static_cast<uint16_t*>(working);
    if (!build(*m, cosines, sines) || !update(*m, nullptr, 0, 0, 0)) return nullptr;
    return m.release();
}

void gf_destroy(Model* m) { delete m; }

// Makes the packed copies anew, after the masters were written from outside.
int gf_publish(Model* m) { return update(*m, nullptr, 0, 0, 0) ? 0 : 1; }

double gf_loss(Model* m, const int64_t* ids, const int64_t* targets, const int64_t* lengths, long sequences) {
    return pass(*m, Batch{ids, targets, lengths, sequences}, 0.f, false, false, Dropout{}, 0);
}

double gf_gradient(Model* m, const int64_t* ids, const int64_t* targets, const int64_t* lengths, long sequences, float scale,
                   int fresh, const Dropout* dropout, long place) {
    return pass(*m, Batch{ids, targets, lengths, sequences}, scale, true, fresh, *dropout, place);
}

double gf_square(Model* m) { return square_of_gradients(*m); }

int gf_update(Model* m, const Rules* rules, float rate, float momentum, long steps) {
    return update(*m, rules, rate, momentum, steps) ? 0 : 1;
}

}  // extern "C"
