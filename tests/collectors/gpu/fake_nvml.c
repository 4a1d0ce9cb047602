/*
 * A libnvidia-ml.so.1 without a GPU: what Galen's NVML collector calls, answered from a mapped file.
 *
 * The file named by GALEN_FAKE_NVML holds one `struct fake_state`, which another process writes while
 * this library runs (tests/collectors/gpu/fake_nvml.py has the same layout; `magic` and `size` guard
 * it). Every call looks for a rule first: a rule names a function ("" is all of them) and a GPU slot
 * (-1 is all of them), and makes the call return an error, or hang for as long as the rule stands.
 *
 * Compiled with -DOLD_DRIVER it lacks the functions that came with R510 and later, as an old driver
 * does. Signatures and numbers follow NVIDIA's published API; no line of NVIDIA's is in here.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MAGIC 0x4c4d564eu /* "NVML" */
#define MAX_GPUS 16
#define MAX_MIGS 7
#define MAX_PROCESSES 16
#define MAX_LINKS 18
#define MAX_RULES 32
#define MAX_FIELDS 16
#define MAX_XIDS 64

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4,
    NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10,
    GPU_IS_LOST = 15, VERSION_MISMATCH = 25, UNKNOWN = 999
};

struct fake_process { uint32_t pid, gpu_instance, compute_instance, graphics; uint64_t bytes; };
struct fake_mig {
    uint32_t present, gpu_instance, compute_instance, multiprocessors;
    uint64_t total_bytes, used_bytes;
    char uuid[64];
};
struct fake_link { uint32_t active, padding; uint64_t errors[4]; };
struct fake_field { uint32_t id, type; int32_t error; uint32_t padding; uint64_t value; };
struct fake_gpu {
    int32_t present, index_error;
    char name[64], uuid[64];
    uint32_t domain, bus, device, device_id;
    uint32_t utilization_percent, memory_utilization_percent;
    uint64_t total_bytes, reserved_bytes, used_bytes;
    int32_t temperature, margin;
    uint32_t slowdown, shutdown;
    uint32_t power_mw, limit_mw, enforced_limit_mw, default_limit_mw, min_limit_mw, max_limit_mw;
    uint64_t energy_mj;
    uint32_t clocks[4], max_clocks[4]; /* graphics, SM, memory, video */
    uint64_t reasons, violation_ns[6];
    uint32_t performance_state, persistence, ecc_current, ecc_pending;
    uint64_t ecc[2][2]; /* [corrected, uncorrected][volatile, aggregate] */
    uint32_t remap[4], remap_histogram[5]; /* corrected, uncorrected, pending, failed; max .. none */
    uint32_t retired[2], retired_pending;
    uint32_t link_generation, max_link_generation, link_width, max_link_width, replays;
    uint32_t fan_percent, nvlinks, mig_current, mig_pending, process_count, field_count;
    struct fake_process processes[MAX_PROCESSES];
    struct fake_field fields[MAX_FIELDS];
    struct fake_link links[MAX_LINKS];
    struct fake_mig migs[MAX_MIGS];
};
struct fake_rule { char function[64]; int32_t gpu, error; uint32_t hang, used; };
struct fake_xid { uint32_t gpu, code, gpu_instance, compute_instance; };
struct fake_state {
    uint32_t magic, size;
    uint32_t latch; /* 1: nvmlInit takes the list of devices, as NVML does; 0: it is live */
    uint32_t inits, calls, cuda_version, xid_head, xid_tail;
    char driver_version[80], nvml_version[80];
    struct fake_rule rules[MAX_RULES];
    struct fake_xid xids[MAX_XIDS];
    struct fake_gpu gpus[MAX_GPUS];
};

static struct fake_state *state;
static int initialised;
static uint32_t latched_count;
static int latched[MAX_GPUS];
static unsigned watched; /* bit per slot with registered events */
static int set_broken;   /* a set in which a device was lost stays so */

EXPORT uint32_t fake_nvml_state_size(void) { return sizeof(struct fake_state); }

/* A handle is the slot plus one in its low byte, and a MIG device plus one above it. */
static void *handle_of(int slot, int mig) { return (void *)(uintptr_t)(((mig + 1) << 8) | (slot + 1)); }
static int slot_of(const void *handle) { return (int)((uintptr_t)handle & 0xff) - 1; }
static int mig_of(const void *handle) { return (int)((uintptr_t)handle >> 8) - 1; }

static int attach(void) {
    const char *path = getenv("GALEN_FAKE_NVML");
    struct stat found;
    int file;
    if (state) return SUCCESS;
    if (!path || (file = open(path, O_RDWR | O_CLOEXEC)) < 0) return DRIVER_NOT_LOADED;
    if (fstat(file, &found) || (size_t)found.st_size < sizeof(struct fake_state)) {
        close(file);
        return DRIVER_NOT_LOADED;
    }
    state = mmap(NULL, sizeof(struct fake_state), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    /* It stays open, as /dev/nvidia0 does: that is what a reset looks for. */
    if (state == MAP_FAILED) { state = NULL; return UNKNOWN; }
    if (state->magic != MAGIC || state->size != sizeof(struct fake_state)) {
        fprintf(stderr, "fake NVML: %s has another layout\n", path);
        return UNKNOWN;
    }
    return SUCCESS;
}

static int rule_for(const char *function, int slot) {
    for (int i = 0; i < MAX_RULES; i++) {
        volatile struct fake_rule *rule = &state->rules[i];
        if (!rule->used || (rule->gpu >= 0 && rule->gpu != slot)) continue;
        if (rule->function[0] && strcmp((const char *)rule->function, function)) continue;
        while (rule->used && rule->hang) usleep(2000);
        if (rule->used && rule->error) return rule->error;
    }
    return SUCCESS;
}

static int enter(const char *function, int slot) {
    int error = attach();
    if (error) return error;
    state->calls++;
    if (!initialised && strncmp(function, "nvmlInit", 8)) return UNINITIALIZED;
    return rule_for(function, slot);
}

static int enter_gpu(const char *function, void *handle, struct fake_gpu **gpu) {
    int slot = slot_of(handle), error;
    if (slot < 0 || slot >= MAX_GPUS) return INVALID_ARGUMENT;
    if ((error = enter(function, slot))) return error;
    *gpu = &state->gpus[slot];
    return (*gpu)->present ? SUCCESS : GPU_IS_LOST;
}

#define GPU_CALL(function) \
    struct fake_gpu *gpu; \
    int error = enter_gpu(function, handle, &gpu); \
    if (error) return error

#define GETTER(function, type, expression) \
    EXPORT int function(void *handle, type *answer) { \
        GPU_CALL(#function); \
        *answer = (type)(expression); \
        return SUCCESS; \
    }

static int slots(int found[MAX_GPUS]) {
    int count = 0;
    if (state->latch) {
        memcpy(found, latched, sizeof latched);
        return (int)latched_count;
    }
    for (int slot = 0; slot < MAX_GPUS; slot++)
        if (state->gpus[slot].present) found[count++] = slot;
    return count;
}

static int text(char *answer, unsigned length, const char *value) {
    if (strlen(value) >= length) return INSUFFICIENT_SIZE;
    strcpy(answer, value);
    return SUCCESS;
}

EXPORT int nvmlInitWithFlags(unsigned flags) {
    int error = enter("nvmlInitWithFlags", -1), found[MAX_GPUS], count = 0;
    if (error) return error;
    for (int slot = 0; slot < MAX_GPUS; slot++)
        if (state->gpus[slot].present) found[count++] = slot;
    if (!count && !(flags & 1u)) return DRIVER_NOT_LOADED;
    memcpy(latched, found, sizeof latched);
    latched_count = (uint32_t)count;
    if (getenv("GALEN_FAKE_NVML_CHATTY")) {
        puts("the library has something to say");
        fflush(stdout);
    }
    state->inits++;
    initialised++;
    return SUCCESS;
}
EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlShutdown(void) {
    int error = enter("nvmlShutdown", -1);
    if (error) return error;
    if (!--initialised) watched = 0;
    return SUCCESS;
}
EXPORT const char *nvmlErrorString(int code) {
    return code == UNKNOWN ? "Unknown Error" : "an error of the fake NVML";
}
EXPORT int nvmlSystemGetDriverVersion(char *answer, unsigned length) {
    int error = enter("nvmlSystemGetDriverVersion", -1);
    return error ? error : text(answer, length, state->driver_version);
}
EXPORT int nvmlSystemGetNVMLVersion(char *answer, unsigned length) {
    int error = enter("nvmlSystemGetNVMLVersion", -1);
    return error ? error : text(answer, length, state->nvml_version);
}
EXPORT int nvmlSystemGetCudaDriverVersion(int *answer) {
    int error = enter("nvmlSystemGetCudaDriverVersion", -1);
    if (!error) *answer = (int)state->cuda_version;
    return error;
}
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *answer) { return nvmlSystemGetCudaDriverVersion(answer); }

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    int found[MAX_GPUS], error = enter("nvmlDeviceGetCount_v2", -1);
    if (!error) *count = (unsigned)slots(found);
    return error;
}
static int open_slot(const char *function, int slot, void **handle) {
    int error = enter(function, slot);
    if (error) return error;
    if (state->gpus[slot].index_error) return state->gpus[slot].index_error;
    if (!state->gpus[slot].present) return GPU_IS_LOST;
    *handle = handle_of(slot, -1);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    int found[MAX_GPUS], error = attach();
    if (error) return error;
    if (!initialised) return UNINITIALIZED;
    if (index >= (unsigned)slots(found)) return INVALID_ARGUMENT;
    return open_slot("nvmlDeviceGetHandleByIndex_v2", found[index], handle);
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    int error = attach();
    if (error) return error;
    for (int slot = 0; slot < MAX_GPUS; slot++)
        if (state->gpus[slot].present && !strcmp(uuid, state->gpus[slot].uuid))
            return open_slot("nvmlDeviceGetHandleByUUID", slot, handle);
    return NOT_FOUND;
}
static void bus_id(const struct fake_gpu *gpu, char *answer, const char *format) {
    sprintf(answer, format, gpu->domain, gpu->bus, gpu->device);
}
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **handle) {
    char text_id[32];
    int error = attach();
    if (error) return error;
    for (int slot = 0; slot < MAX_GPUS; slot++) {
        bus_id(&state->gpus[slot], text_id, "%08X:%02X:%02X.0");
        if (state->gpus[slot].present && !strcmp(id, text_id))
            return open_slot("nvmlDeviceGetHandleByPciBusId_v2", slot, handle);
    }
    return NOT_FOUND;
}
EXPORT int nvmlDeviceGetIndex(void *handle, unsigned *index) {
    int found[MAX_GPUS], count;
    GPU_CALL("nvmlDeviceGetIndex");
    (void)gpu;
    count = slots(found);
    for (int i = 0; i < count; i++)
        if (found[i] == slot_of(handle)) { *index = (unsigned)i; return SUCCESS; }
    return NOT_FOUND;
}
EXPORT int nvmlDeviceGetName(void *handle, char *answer, unsigned length) {
    GPU_CALL("nvmlDeviceGetName");
    return text(answer, length, gpu->name);
}
EXPORT int nvmlDeviceGetUUID(void *handle, char *answer, unsigned length) {
    int mig = mig_of(handle);
    GPU_CALL("nvmlDeviceGetUUID");
    return text(answer, length, mig >= 0 ? gpu->migs[mig].uuid : gpu->uuid);
}
struct pci_info {
    char legacy[16];
    uint32_t domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};
EXPORT int nvmlDeviceGetPciInfo_v3(void *handle, struct pci_info *answer) {
    GPU_CALL("nvmlDeviceGetPciInfo_v3");
    memset(answer, 0, sizeof *answer);
    bus_id(gpu, answer->legacy, "%04X:%02X:%02X.0");
    bus_id(gpu, answer->bus_id, "%08X:%02X:%02X.0");
    answer->domain = gpu->domain;
    answer->bus = gpu->bus;
    answer->device = gpu->device;
    answer->device_id = gpu->device_id;
    return SUCCESS;
}

struct utilization { uint32_t gpu, memory; };
EXPORT int nvmlDeviceGetUtilizationRates(void *handle, struct utilization *answer) {
    GPU_CALL("nvmlDeviceGetUtilizationRates");
    if (gpu->mig_current || mig_of(handle) >= 0) return NOT_SUPPORTED;
    answer->gpu = gpu->utilization_percent;
    answer->memory = gpu->memory_utilization_percent;
    return SUCCESS;
}
struct memory { uint64_t total, free, used; };
EXPORT int nvmlDeviceGetMemoryInfo(void *handle, struct memory *answer) {
    int mig = mig_of(handle);
    GPU_CALL("nvmlDeviceGetMemoryInfo");
    answer->total = mig >= 0 ? gpu->migs[mig].total_bytes : gpu->total_bytes;
    /* The first version of this call counts what the driver reserves as used. */
    answer->used = mig >= 0 ? gpu->migs[mig].used_bytes : gpu->used_bytes + gpu->reserved_bytes;
    answer->free = answer->total - answer->used;
    return SUCCESS;
}
#ifndef OLD_DRIVER
struct memory_v2 { uint32_t version; uint64_t total, reserved, free, used; };
EXPORT int nvmlDeviceGetMemoryInfo_v2(void *handle, struct memory_v2 *answer) {
    int mig = mig_of(handle);
    GPU_CALL("nvmlDeviceGetMemoryInfo_v2");
    if (answer->version != (2u << 24 | sizeof *answer)) return VERSION_MISMATCH;
    answer->total = mig >= 0 ? gpu->migs[mig].total_bytes : gpu->total_bytes;
    answer->used = mig >= 0 ? gpu->migs[mig].used_bytes : gpu->used_bytes;
    answer->reserved = mig >= 0 ? 0 : gpu->reserved_bytes;
    answer->free = answer->total - answer->used - answer->reserved;
    return SUCCESS;
}
struct margin { uint32_t version; int32_t margin; };
EXPORT int nvmlDeviceGetMarginTemperature(void *handle, struct margin *answer) {
    GPU_CALL("nvmlDeviceGetMarginTemperature");
    if (answer->version != (1u << 24 | sizeof *answer)) return VERSION_MISMATCH;
    answer->margin = gpu->margin;
    return SUCCESS;
}
GETTER(nvmlDeviceGetCurrentClocksEventReasons, uint64_t, gpu->reasons)
#endif
GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, uint64_t, gpu->reasons)

EXPORT int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *answer) {
    GPU_CALL("nvmlDeviceGetTemperature");
    if (sensor) return INVALID_ARGUMENT;
    *answer = (unsigned)gpu->temperature;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetTemperatureThreshold(void *handle, unsigned kind, unsigned *answer) {
    GPU_CALL("nvmlDeviceGetTemperatureThreshold");
    if (kind > 1) return NOT_SUPPORTED;
    *answer = kind ? gpu->slowdown : gpu->shutdown;
    return *answer ? SUCCESS : NOT_SUPPORTED;
}
GETTER(nvmlDeviceGetPowerUsage, uint32_t, gpu->power_mw)
GETTER(nvmlDeviceGetPowerManagementLimit, uint32_t, gpu->limit_mw)
GETTER(nvmlDeviceGetEnforcedPowerLimit, uint32_t, gpu->enforced_limit_mw)
GETTER(nvmlDeviceGetPowerManagementDefaultLimit, uint32_t, gpu->default_limit_mw)
GETTER(nvmlDeviceGetTotalEnergyConsumption, uint64_t, gpu->energy_mj)
EXPORT int nvmlDeviceGetPowerManagementLimitConstraints(void *handle, unsigned *low, unsigned *high) {
    GPU_CALL("nvmlDeviceGetPowerManagementLimitConstraints");
    *low = gpu->min_limit_mw;
    *high = gpu->max_limit_mw;
    return SUCCESS;
}
EXPORT int nvmlDeviceSetPowerManagementLimit(void *handle, unsigned limit) {
    GPU_CALL("nvmlDeviceSetPowerManagementLimit");
    if (limit < gpu->min_limit_mw || limit > gpu->max_limit_mw) return INVALID_ARGUMENT;
    gpu->limit_mw = gpu->enforced_limit_mw = limit;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetClockInfo(void *handle, unsigned kind, unsigned *answer) {
    GPU_CALL("nvmlDeviceGetClockInfo");
    if (kind > 3) return INVALID_ARGUMENT;
    *answer = gpu->clocks[kind];
    return SUCCESS;
}
EXPORT int nvmlDeviceGetMaxClockInfo(void *handle, unsigned kind, unsigned *answer) {
    GPU_CALL("nvmlDeviceGetMaxClockInfo");
    if (kind > 3) return INVALID_ARGUMENT;
    *answer = gpu->max_clocks[kind];
    return SUCCESS;
}
struct violation { uint64_t reference_us, violation_ns; };
EXPORT int nvmlDeviceGetViolationStatus(void *handle, unsigned policy, struct violation *answer) {
    GPU_CALL("nvmlDeviceGetViolationStatus");
    if (policy > 5) return NOT_SUPPORTED;
    answer->reference_us = 1;
    answer->violation_ns = gpu->violation_ns[policy];
    return SUCCESS;
}
GETTER(nvmlDeviceGetPerformanceState, uint32_t, gpu->performance_state)
GETTER(nvmlDeviceGetPersistenceMode, uint32_t, gpu->persistence)
EXPORT int nvmlDeviceGetEccMode(void *handle, unsigned *current, unsigned *pending) {
    GPU_CALL("nvmlDeviceGetEccMode");
    *current = gpu->ecc_current;
    *pending = gpu->ecc_pending;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetTotalEccErrors(void *handle, unsigned kind, unsigned counter, uint64_t *answer) {
    GPU_CALL("nvmlDeviceGetTotalEccErrors");
    if (kind > 1 || counter > 1) return INVALID_ARGUMENT;
    if (!gpu->ecc_current) return NOT_SUPPORTED;
    *answer = gpu->ecc[kind][counter];
    return SUCCESS;
}
EXPORT int nvmlDeviceGetRemappedRows(void *handle, unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
    GPU_CALL("nvmlDeviceGetRemappedRows");
    *a = gpu->remap[0];
    *b = gpu->remap[1];
    *c = gpu->remap[2];
    *d = gpu->remap[3];
    return SUCCESS;
}
EXPORT int nvmlDeviceGetRowRemapperHistogram(void *handle, uint32_t *answer) {
    GPU_CALL("nvmlDeviceGetRowRemapperHistogram");
    memcpy(answer, gpu->remap_histogram, sizeof gpu->remap_histogram);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetRetiredPages(void *handle, unsigned cause, unsigned *count, uint64_t *pages) {
    unsigned room = *count;
    GPU_CALL("nvmlDeviceGetRetiredPages");
    if (cause > 1) return INVALID_ARGUMENT;
    *count = gpu->retired[cause];
    if (room < *count) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; pages && i < *count; i++) pages[i] = 0x1000ull * (i + 1);
    return SUCCESS;
}
GETTER(nvmlDeviceGetRetiredPagesPendingStatus, uint32_t, gpu->retired_pending)
GETTER(nvmlDeviceGetCurrPcieLinkGeneration, uint32_t, gpu->link_generation)
GETTER(nvmlDeviceGetMaxPcieLinkGeneration, uint32_t, gpu->max_link_generation)
GETTER(nvmlDeviceGetCurrPcieLinkWidth, uint32_t, gpu->link_width)
GETTER(nvmlDeviceGetMaxPcieLinkWidth, uint32_t, gpu->max_link_width)
GETTER(nvmlDeviceGetPcieReplayCounter, uint32_t, gpu->replays)
EXPORT int nvmlDeviceGetFanSpeed(void *handle, unsigned *answer) {
    GPU_CALL("nvmlDeviceGetFanSpeed");
    if (gpu->fan_percent == UINT32_MAX) return NOT_SUPPORTED; /* passively cooled */
    *answer = gpu->fan_percent;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetNvLinkState(void *handle, unsigned link, unsigned *answer) {
    GPU_CALL("nvmlDeviceGetNvLinkState");
    if (link >= gpu->nvlinks) return gpu->nvlinks ? INVALID_ARGUMENT : NOT_SUPPORTED;
    *answer = gpu->links[link].active;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetNvLinkErrorCounter(void *handle, unsigned link, unsigned kind, uint64_t *answer) {
    GPU_CALL("nvmlDeviceGetNvLinkErrorCounter");
    if (link >= gpu->nvlinks || kind > 3) return INVALID_ARGUMENT;
    if (!gpu->links[link].active) return NOT_SUPPORTED;
    *answer = gpu->links[link].errors[kind];
    return SUCCESS;
}

/* Current NVML pads this struct to 24 bytes; the same holds for its second version. */
struct process { uint32_t pid; uint64_t bytes; uint32_t gpu_instance, compute_instance; };
static int processes(const char *function, void *handle, unsigned graphics, unsigned *count,
                     struct process *answer) {
    unsigned room = *count, found = 0;
    int mig = mig_of(handle);
    GPU_CALL(function);
    for (unsigned i = 0; i < gpu->process_count && i < MAX_PROCESSES; i++) {
        const struct fake_process *one = &gpu->processes[i];
        if (one->graphics != graphics) continue;
        if (mig >= 0 && one->gpu_instance != gpu->migs[mig].gpu_instance) continue;
        if (found < room && answer)
            answer[found] = (struct process){one->pid, one->bytes, one->gpu_instance,
                                             one->compute_instance};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}
#ifndef OLD_DRIVER
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *answer) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v3", handle, 0, count, answer);
}
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, struct process *answer) {
    return processes("nvmlDeviceGetGraphicsRunningProcesses_v3", handle, 1, count, answer);
}
#endif
EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *count, struct process *answer) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v2", handle, 0, count, answer);
}
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v2(void *handle, unsigned *count, struct process *answer) {
    return processes("nvmlDeviceGetGraphicsRunningProcesses_v2", handle, 1, count, answer);
}

EXPORT int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    GPU_CALL("nvmlDeviceGetMigMode");
    *current = gpu->mig_current;
    *pending = gpu->mig_pending;
    return SUCCESS;
}
GETTER(nvmlDeviceGetMaxMigDeviceCount, uint32_t, gpu->mig_current ? MAX_MIGS : 0)
EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **answer) {
    GPU_CALL("nvmlDeviceGetMigDeviceHandleByIndex");
    if (index >= MAX_MIGS) return INVALID_ARGUMENT;
    if (!gpu->migs[index].present) return NOT_FOUND;
    *answer = handle_of(slot_of(handle), (int)index);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *handle, void **answer) {
    if (mig_of(handle) < 0) return INVALID_ARGUMENT;
    *answer = handle_of(slot_of(handle), -1);
    return SUCCESS;
}
#define MIG_GETTER(function, expression) \
    EXPORT int function(void *handle, unsigned *answer) { \
        int mig = mig_of(handle); \
        GPU_CALL(#function); \
        if (mig < 0) return INVALID_ARGUMENT; \
        *answer = gpu->migs[mig].expression; \
        return SUCCESS; \
    }
MIG_GETTER(nvmlDeviceGetGpuInstanceId, gpu_instance)
MIG_GETTER(nvmlDeviceGetComputeInstanceId, compute_instance)
struct attributes { uint32_t multiprocessors, shared[5], gpu_slices, compute_slices; uint64_t megabytes; };
EXPORT int nvmlDeviceGetAttributes_v2(void *handle, struct attributes *answer) {
    int mig = mig_of(handle);
    GPU_CALL("nvmlDeviceGetAttributes_v2");
    if (mig < 0) return NOT_SUPPORTED;
    memset(answer, 0, sizeof *answer);
    answer->multiprocessors = gpu->migs[mig].multiprocessors;
    answer->megabytes = gpu->migs[mig].total_bytes >> 20;
    return SUCCESS;
}

struct field {
    uint32_t id, scope;
    int64_t timestamp, latency;
    uint32_t type, result;
    uint64_t value;
};
EXPORT int nvmlDeviceGetFieldValues(void *handle, int count, struct field *fields) {
    GPU_CALL("nvmlDeviceGetFieldValues");
    for (int i = 0; i < count; i++) {
        fields[i].result = NOT_SUPPORTED;
        for (unsigned j = 0; j < gpu->field_count && j < MAX_FIELDS; j++) {
            if (gpu->fields[j].id != fields[i].id) continue;
            fields[i].result = (uint32_t)gpu->fields[j].error;
            fields[i].type = gpu->fields[j].type;
            fields[i].value = gpu->fields[j].value;
        }
    }
    return SUCCESS;
}

struct event { void *device; uint64_t kind, data; uint32_t gpu_instance, compute_instance; };
EXPORT int nvmlEventSetCreate(void **set) {
    int error = enter("nvmlEventSetCreate", -1);
    if (error) return error;
    *set = (void *)(uintptr_t)0x5e7;
    watched = 0;
    set_broken = 0;
    return SUCCESS;
}
EXPORT int nvmlEventSetFree(void *set) { (void)set; return enter("nvmlEventSetFree", -1); }
EXPORT int nvmlDeviceRegisterEvents(void *handle, uint64_t kinds, void *set) {
    GPU_CALL("nvmlDeviceRegisterEvents");
    (void)gpu;
    if (!set || kinds != 8) return INVALID_ARGUMENT;
    watched |= 1u << slot_of(handle);
    return SUCCESS;
}
EXPORT int nvmlEventSetWait_v2(void *set, struct event *event, unsigned milliseconds) {
    int error = enter("nvmlEventSetWait_v2", -1);
    (void)set;
    if (error == GPU_IS_LOST) set_broken = 1;
    if (set_broken) return GPU_IS_LOST;
    if (error) return error;
    for (unsigned waited = 0;; waited += 2) {
        while (state->xid_tail != state->xid_head) {
            struct fake_xid *xid = &state->xids[state->xid_tail++ % MAX_XIDS];
            if (!(watched & 1u << xid->gpu)) continue;
            *event = (struct event){handle_of((int)xid->gpu, -1), 8, xid->code, xid->gpu_instance,
                                    xid->compute_instance};
            return SUCCESS;
        }
        if (waited >= milliseconds) return TIMEOUT;
        usleep(2000);
    }
}
