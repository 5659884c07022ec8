/* NVML's few calls, answered from the environment: FAKE_GPUS="UUID,UUID"; built by the tests as libnvidia-ml.so.1. */
#include <stdlib.h>
#include <string.h>

static const char *uuid(unsigned index, size_t *length) {
    const char *at = getenv("FAKE_GPUS");
    for (; at && *at; at += *length + (at[*length] == ',')) {
        *length = strcspn(at, ",");
        if (index-- == 0) return at;
    }
    return NULL;
}

int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    size_t length;
    for (*count = 0; uuid(*count, &length); ++*count) {}
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(size_t)(index + 1);
    return 0;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned size) {
    size_t length;
    const char *found = uuid((size_t)device - 1, &length);
    memcpy(text, found, length);
    text[length] = 0;
    return 0;
}

int nvmlDeviceGetName(void *device, char *text, unsigned size) {
    strcpy(text, "Imagined GPU");
    return 0;
}

int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *total_free_used) {
    total_free_used[0] = 1ull << 30;
    return 0;
}
