// A column of samples: loaded and sorted by one thread.
//
// t is the column of a thread's pixel: rank i is t[i * ROW]. The LANES threads of a block are neighbouring pixels, so
// that a warp reads consecutive words, in shared memory and in global memory alike. In shared memory a row has one
// word more, so that a warp can as well read consecutive ranks of one pixel.
//
// Runs of 8, 16 or 32 frames (RUN) are sorted in registers as they are loaded, by Batcher's odd-even merge sort.
// Bitonic merges follow, four stages to a pass: 16 rows come into registers, meet, and go back, so that the samples of
// 200 frames are moved six times. Every comparison leaves the larger value in the higher row, and rows that do not
// exist count as largest, so any number of frames will do.
//
// A column too long for shared memory is sorted in runs of RUN_ROWS, which are merged all at once in global memory by
// a tournament; one too long for that is sorted in global memory like a short one (PLACE).
//
// Sorting only moves values: what is sorted is the same whatever sorts it, here and in combine/sorting.py.

#include "rejection/window.cu"
#include "runtime/device.cu"

struct Cube {  // the samples of one pixel
    const float* samples;
    long long stride;  // elements from one frame to the next
    long long p;       // this pixel
    int channels, channel;
};

DEVICE float sample(const Cube& cube, int i) { return cube.samples[(long long)i * cube.stride + cube.p]; }

// Samples of frames first .. first + COUNT - 1, as many reads at once; rest for frames from stop on.
template <int COUNT>
DEVICE void samples_of(const Cube& cube, int first, int stop, float rest, float (&x)[COUNT]) {
    const float* place = cube.samples + (long long)first * cube.stride + cube.p;
    if (first + COUNT <= stop) {
#pragma unroll
        for (int k = 0; k < COUNT; k++) x[k] = place[k * cube.stride];
    } else {
#pragma unroll
        for (int k = 0; k < COUNT; k++) x[k] = first + k < stop ? place[k * cube.stride] : rest;
    }
}

DEVICE void order(float& a, float& b) {
    const float x = a, y = b;
    a = fminf(x, y);
    b = fmaxf(x, y);
}

// One stage of Batcher's odd-even merge sort, Knuth, TAOCP vol. 3, 5.2.2, algorithm M: pairs at distance K while runs
// of P are merged; then the stages after it.
template <int COUNT, int P, int K>
DEVICE void sort_stage(float (&v)[COUNT]) {
#pragma unroll
    for (int i = K % P; i < COUNT - K; i++) {
        if (((i - K % P) & K) == 0 && i / (2 * P) == (i + K) / (2 * P)) order(v[i], v[i + K]);
    }
    if constexpr (K > 1) sort_stage<COUNT, P, K / 2>(v);
    else if constexpr (2 * P < COUNT) sort_stage<COUNT, 2 * P, 2 * P>(v);
}

template <int FIRST, int COUNT, int SIZE>  // the last stages of a bitonic merge: pairs at distance COUNT / 2 .. 1
DEVICE void clean(float (&v)[SIZE]) {
#pragma unroll
    for (int k = COUNT / 2; k >= 1; k /= 2) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if ((i & k) == 0) order(v[FIRST + i], v[FIRST + i + k]);
        }
    }
}

// Stages of a bitonic merge at the distances R / 2 * step .. step. Rows from n on hold BIG, unwritten: every
// comparison leaves the larger value in the higher row, so they never move. Rows from stop on are left alone.
template <int R>
DEVICE void clean_pass(float* t, int n, int stop, int step) {
#pragma unroll 1
    for (int block = 0; block < stop; block += R * step) {
#pragma unroll 1
        for (int row = block; row < block + step && row < stop; row++) {
            float v[R];
            if (row + (R - 1) * step < n) {
#pragma unroll
                for (int m = 0; m < R; m++) v[m] = t[(row + m * step) * ROW];
                clean<0, R>(v);
#pragma unroll
                for (int m = 0; m < R; m++) t[(row + m * step) * ROW] = v[m];
            } else {
#pragma unroll
                for (int m = 0; m < R; m++) v[m] = row + m * step < n ? t[(row + m * step) * ROW] : BIG;
                clean<0, R>(v);
#pragma unroll
                for (int m = 0; m < R; m++) {
                    if (row + m * step < n) t[(row + m * step) * ROW] = v[m];
                }
            }
        }
    }
}

// The first four stages of a merge of sorted runs of p rows: each row with its mirror image in the other run, then the
// distances p / 2, p / 4 and p / 8.
DEVICE void mirror_pass(float* t, int n, int stop, int p) {
    const int step = p / 8;
#pragma unroll 1
    for (int block = 0; block < stop; block += 2 * p) {
#pragma unroll 1
        for (int j = 0; j < step; j++) {
            const int row = block + j;
            const int mirror = block + p + step - 1 - j;
            float v[16];
#pragma unroll
            for (int m = 0; m < 8; m++) {
                v[m] = t[(row + m * step) * ROW];
                v[8 + m] = mirror + m * step < n ? t[(mirror + m * step) * ROW] : BIG;
            }
#pragma unroll
            for (int m = 0; m < 8; m++) order(v[m], v[15 - m]);
            clean<0, 8>(v);
            clean<8, 8>(v);
#pragma unroll
            for (int m = 0; m < 8; m++) {
                t[(row + m * step) * ROW] = v[m];
                if (mirror + m * step < n) t[(mirror + m * step) * ROW] = v[8 + m];
            }
        }
    }
}

// Sorts the n rows of a column that consists of sorted runs of 32: K. E. Batcher, "Sorting networks and their
// applications", 1968.
DEVICE void sort_rows(float* t, int n) {
#pragma unroll 1
    for (int p = 32; p < n; p *= 2) {
        const int rest = n % (2 * p);
        const int stop = rest <= p ? n - rest : n;  // a run without a partner stays
        mirror_pass(t, n, stop, p);
        int distance = p / 16;
        int stages = 0;
        for (int k = distance; k >= 1; k /= 2) stages++;
        while (stages > 0) {
            const int take = stages % 4 == 0 ? 4 : (stages == 2 ? 2 : 3);
            if (take == 4) clean_pass<16>(t, n, stop, distance / 8);
            else if (take == 3) clean_pass<8>(t, n, stop, distance / 4);
            else clean_pass<4>(t, n, stop, distance / 2);
            distance >>= take;
            stages -= take;
        }
    }
}

// Returns 1 for an invalid sample of frame i; all those of the warp are taken from the frame's count, counts[i][2].
DEVICE int count_invalid(float x, bool active, int i, unsigned long long* counts) {
    const bool invalid = !finite(x);
    const unsigned lanes = __ballot_sync(EVERYONE, invalid && active);
    if (threadIdx.x == 0 && lanes != 0) atomicAdd(counts + 3 * i + 2, 0ull - (unsigned long long)__popc(lanes));
    return invalid ? 1 : 0;
}

// Copies the samples of frames first .. first + n - 1 into t, in sorted runs of COUNT; invalid ones become the largest
// number. Returns how many are valid.
template <int COUNT>
DEVICE int load(const Cube& cube, int first, int n, float* t, bool active, unsigned long long* counts) {
    int n_valid = n;
#pragma unroll 1
    for (int start = 0; start < n; start += COUNT) {
        float v[COUNT];
        samples_of<COUNT>(cube, first + start, first + n, BIG, v);
        bool all = true;
#pragma unroll
        for (int k = 0; k < COUNT; k++) all = all && finite(v[k]);
        if (__any_sync(EVERYONE, !all)) {
#pragma unroll
            for (int k = 0; k < COUNT; k++) {
                const int invalid = count_invalid(v[k], active, first + start + k, counts);
                n_valid -= invalid;
                v[k] = invalid != 0 ? BIG : v[k];
            }
        }
#pragma unroll
        for (int k = 0; k < COUNT; k++) v[k] = v[k] + 0.0f;  // -0 becomes +0: their order must not tell them apart
        sort_stage<COUNT, 1, 1>(v);
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            if (start + k < n) t[(start + k) * ROW] = v[k];
        }
    }
    return n_valid;
}

// Merges the sorted runs of RUN_ROWS rows of a column, all at once, by a tournament. memory: 3 + AHEAD rows a run.
// Of every run the next AHEAD rows wait in memory; the one behind them is read while AHEAD rows of whatever run go out.
// Source: Knuth, TAOCP vol. 3, 5.4.1, tree of losers.
DEVICE void merge_runs(const float* runs, float* merged, int n, float* memory) {
    const int many = (n + RUN_ROWS - 1) / RUN_ROWS;
    float* loser = memory;  // of the match played at each node: its value
    float* of_run = loser + many * ROW;  // and its run, an integer's bits like the next
    float* next_row = of_run + many * ROW;  // of each run, counted within it
    float* waiting = next_row + many * ROW;  // row r of a run at its place r % AHEAD
    for (int i = 0; i < many; i++) {
        loser[i * ROW] = -BIGGER;  // until the first real ones have come
        of_run[i * ROW] = __int_as_float(i);
        next_row[i * ROW] = __int_as_float(0);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const int row = i * RUN_ROWS + a;
            waiting[(i * AHEAD + a) * ROW] = row < n ? runs[row * ROW] : BIGGER;
        }
    }
    float coming[AHEAD];
    int place[AHEAD];  // where it will wait
#pragma unroll
    for (int a = 0; a < AHEAD; a++) place[a] = -1;
    int run = 0;
#pragma unroll 1
    for (int start = 0; start < many - 1 + n; start += AHEAD) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const int step = start + a;
            if (place[a] >= 0) waiting[place[a] * ROW] = coming[a];
            if (step < many) run = step;  // each run enters once, then the one that has won
            const int row = __float_as_int(next_row[run * ROW]);
            next_row[run * ROW] = __int_as_float(row + 1);
            place[a] = run * AHEAD + row % AHEAD;
            float value = waiting[place[a] * ROW];
            const int behind = run * RUN_ROWS + row + AHEAD;
            coming[a] = row + AHEAD < RUN_ROWS && behind < n ? runs[behind * ROW] : BIGGER;
            const int leaf = run + many;
            float other[LEVELS];
            int other_run[LEVELS];
#pragma unroll
            for (int level = 0; level < LEVELS; level++) {
                const int node = leaf >> (level + 1);
                other[level] = node > 0 ? loser[node * ROW] : BIGGER;
                other_run[level] = node > 0 ? __float_as_int(of_run[node * ROW]) : 0;
            }
#pragma unroll
            for (int level = 0; level < LEVELS; level++) {
                if (other[level] < value) {
                    loser[(leaf >> (level + 1)) * ROW] = value;
                    of_run[(leaf >> (level + 1)) * ROW] = __int_as_float(run);
                    value = other[level];
                    run = other_run[level];
                }
            }
            const int rank = step - many + 1;
            if (rank >= 0 && rank < n) merged[rank * ROW] = value;
        }
    }
}

// Where the columns of a block are sorted, from this thread's word on.
struct Memory {
    float* shared;
    float* scratch;  // where it is used, 2 * n rows for runs and column, or n rows
};

// Loads the samples of a pixel and sorts them; t is where they are then. Returns how many are valid.
template <int COUNT>
DEVICE int load_sorted(
    const Cube& cube, int n, const Memory& memory, bool active, unsigned long long* counts, const float*& t) {
    if (PLACE != MERGED) {
        float* column = PLACE == SHARED ? memory.shared : memory.scratch;
        const int n_valid = load<COUNT>(cube, 0, n, column, active, counts);
        sort_rows(column, n);
        t = column;
        return n_valid;
    }
    int n_valid = 0;
#pragma unroll 1
    for (int first = 0; first < n; first += RUN_ROWS) {
        const int rows = min(RUN_ROWS, n - first);
        n_valid += load<COUNT>(cube, first, rows, memory.shared, active, counts);
        sort_rows(memory.shared, rows);
#pragma unroll 8
        for (int i = 0; i < rows; i++) memory.scratch[(first + i) * ROW] = memory.shared[i * ROW];
    }
    float* column = memory.scratch + (long long)n * ROW;
    merge_runs(memory.scratch, column, n, memory.shared);
    t = column;
    return n_valid;
}

// Median of the valid samples; 0 where there is none.
DEVICE double centre_of(const float* t, int n) {
    return n > 0 ? 0.5 * (at(t, (n - 1) / 2) + at(t, n / 2)) : 0.0;
}
