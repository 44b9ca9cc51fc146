// Words that every kernel of rejection and combination uses.

#define DEVICE __device__ __forceinline__
#define EVERYONE 0xffffffffu               // all threads of a warp
#define BIG 3.4028235e38f                  // the largest number
#define BIGGER __int_as_float(0x7f800000)  // infinity
#define PAST_ALL 1e300                     // above every sample
#define NOT_A_NUMBER __int_as_float(0x7fc00000)  // with the bits it has on the processor

DEVICE bool finite(float v) { return fabsf(v) <= BIG; }  // false for NaN and infinity
