/* The calls of NVML that backends/nvml.py makes, with the signatures of nvml.h, for a machine that the environment
   describes: STUB_GPUS of them (2), the first in two MIG instances with STUB_MIG, memory of its own unless STUB_UNIFIED;
   STUB_INIT is the code that initialising returns; STUB_CRASH and STUB_HANG do that instead, STUB_NOISE prints. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned long long total, free, used; } memory_t;

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

/* Handles: 1 + index for a GPU, 101 + place for a MIG instance of the first. */
int nvmlInit_v2(void) {
    if (getenv("STUB_CRASH")) abort();
    if (getenv("STUB_HANG")) pause();
    if (getenv("STUB_NOISE")) puts("noise");
    return number("STUB_INIT", 0);
}
const char *nvmlErrorString(int code) { return code == 18 ? "Driver/library version mismatch" : "Not Supported"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = number("STUB_GPUS", 2); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) { *gpu = (void *)(1ul + index); return 0; }
int nvmlDeviceGetMigMode(void *gpu, unsigned *current, unsigned *pending) {
    if (!getenv("STUB_MIG")) return 3;
    *current = *pending = gpu == (void *)1;
    return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void *gpu, unsigned *count) { (void)gpu; *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *gpu, unsigned place, void **device) {
    (void)gpu;
    if (place % 4) return 6;
    *device = (void *)(101ul + place);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    if (getenv("STUB_UNIFIED")) return 3;
    memory->total = (size_t)device > 100 ? 20ull << 30 : 80ull << 30;
    memory->used = 1ull << 30;
    memory->free = memory->total - memory->used;
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *gpu, int *major, int *minor) {
    if ((size_t)gpu > 100) return 3;
    *major = 9;
    *minor = 0;
    return 0;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    snprintf(name, length, (size_t)device > 100 ? "Stub MIG 1g.20gb" : "Stub H100");
    return 0;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    size_t handle = (size_t)device;
    snprintf(uuid, length, handle > 100 ? "MIG-%zu" : "GPU-%zu", handle > 100 ? handle - 101 : handle - 1);
    return 0;
}
int nvmlSystemGetDriverVersion(char *version, unsigned length) { snprintf(version, length, "580.95.05"); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return 0; }
