// A stand-in for NVIDIA's driver library: the entry points of the driver API that the backend uses, on the host.
//
// Work is queued and runs only when something waits for it, as late as a device may be. Kernels are libraries of the emulator
// (tests/emulator), given in place of machine code. Every call is held to what the driver's documentation asks; what breaks it is a
// fault, printed at once and counted in the report that OCELLI_STANDIN_REPORT names, with what is still held when the process ends.
//
// OCELLI_STANDIN_FAIL=NAME:N:CODE has the N-th call of an entry point give CODE, which sticks where it ends a context;
// OCELLI_STANDIN_ARCH=80 makes it a device before Hopper; OCELLI_STANDIN_HANG=N has work never end from the N-th launch on; OCELLI_STANDIN_VERSION is what cuDriverGetVersion tells.
// OCELLI_STANDIN_UNITS and OCELLI_STANDIN_L2 are its multiprocessors and the bytes of its cache, OCELLI_STANDIN_US the microseconds of a launch.
// OCELLI_STANDIN_OVERLAP says where launches that may begin before the one before them ends are refused: `launch`, as they are
// recorded; `instantiate`, when their recording is made executable; `never`, everywhere, which is a fault.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int CUresult;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_SUPPORTED = 801, NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900,
       CAPTURE_INVALIDATED = 901 };

#define GUARD 256
#define MOST_SHARED 232448

static pthread_mutex_t all = PTHREAD_MUTEX_INITIALIZER;
static int initialized, faults, sticky, retained;
static _Thread_local void *current;
static int the_context;

static const char *env(const char *name) { const char *value = getenv(name); return value && *value ? value : NULL; }
static int number(const char *name, int usual) { const char *text = env(name); return text ? atoi(text) : usual; }
static int overlap_is(const char *word) { const char *text = env("OCELLI_STANDIN_OVERLAP"); return text && !strcmp(text, word); }

__attribute__((format(printf, 1, 2))) static CUresult fault(const char *format, ...) {
    char text[4096];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fprintf(stderr, "stand-in: fault: %s\n", text);
    faults++;
    return INVALID_VALUE;
}

// ---- what the program holds

enum kind { STREAM, EVENT, DEVICE, HOST, GRAPH, EXEC, MODULE, KINDS };
static const char *const names[KINDS] = {"streams", "events", "device_allocations", "host_allocations", "graphs", "graph_execs", "modules"};
struct held { enum kind kind; uint64_t at, len; void *base; struct held *next; };
static struct held *holding;
static int held_now[KINDS];
static int overlapping, refused;

static struct held *hold(enum kind kind, uint64_t at, uint64_t len, void *base) {
    struct held *one = calloc(1, sizeof *one);
    *one = (struct held){kind, at, len, base, holding};
    holding = one;
    held_now[kind]++;
    return one;
}

static struct held *find(enum kind kind, uint64_t at, uint64_t len) {
    for (struct held *one = holding; one; one = one->next)
        if (one->kind == kind && at >= one->at && at + len <= one->at + (one->len ? one->len : 1)) return one;
    return NULL;
}

static int release(enum kind kind, uint64_t at) {
    for (struct held **link = &holding; *link; link = &(*link)->next)
        if ((*link)->kind == kind && (*link)->at == at) {
            struct held *one = *link;
            *link = one->next;
            free(one->base);
            free(one);
            held_now[kind]--;
            return 1;
        }
    return 0;
}

int standin_faults(void) { return faults; }

static void report(void) {
    const char *path = env("OCELLI_STANDIN_REPORT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "{\"faults\":%d,\"contexts\":%d,\"overlapping_launches\":%d,\"overlaps_refused\":%d", faults, retained, overlapping, refused);
    for (int kind = 0; kind < KINDS; kind++) fprintf(file, ",\"%s\":%d", names[kind], held_now[kind]);
    fprintf(file, "}\n");
    fclose(file);
}

// ---- kernels

struct raw_launch { unsigned grid[3], threads, shared, cluster, cooperative; const void *params; uint64_t params_len; const uint64_t (*allocations)[2]; uint64_t allocation_count; };
struct function { void *library; int (*run)(const struct raw_launch *, char *, uint64_t); unsigned long param_bytes; unsigned most_threads, shared; };
struct launch { struct function *function; unsigned grid[3], threads, shared, cluster, cooperative, overlaps; void *params; };

// ---- the queue

enum work { COPY_IN, COPY_OUT, SET, LAUNCH, MARK };
struct event { int recorded, done, timing; double at; };
struct op { enum work work; uint64_t device; void *host, *snapshot; size_t len; int value; struct launch launch; struct event *event; struct op *next; };
static struct op *first, **last = &first;
static int launches, hangs;
static double device_us;

struct graph { struct launch *launches; size_t count; };
static struct graph *capturing;
static int broken;

static CUresult in_capture(const char *what) {
    if (!capturing) return OK;
    fault("%s while launches are recorded", what);
    broken = 1;
    return CAPTURE_UNSUPPORTED;
}

static void push(struct op op) {
    struct op *one = malloc(sizeof *one);
    *one = op;
    one->next = NULL;
    *last = one;
    last = &one->next;
}

static CUresult run_kernel(struct launch *launch) {
    struct function *function = launch->function;
    size_t count = 0;
    for (struct held *one = holding; one; one = one->next) count += one->kind == DEVICE;
    uint64_t(*places)[2] = calloc(count + 1, sizeof *places);
    size_t at = 0;
    for (struct held *one = holding; one; one = one->next)
        if (one->kind == DEVICE) { places[at][0] = one->at; places[at++][1] = one->len; }
    // The emulator looks places up in order.
    for (size_t i = 1; i < at; i++)
        for (size_t j = i; j > 0 && places[j - 1][0] > places[j][0]; j--) {
            uint64_t swap[2] = {places[j][0], places[j][1]};
            memcpy(places[j], places[j - 1], sizeof swap);
            memcpy(places[j - 1], swap, sizeof swap);
        }
    char text[2048] = "";
    struct raw_launch raw = {{launch->grid[0], launch->grid[1], launch->grid[2]}, launch->threads, launch->shared, launch->cluster, launch->cooperative,
                             launch->params, function->param_bytes, (const uint64_t(*)[2])places, at};
    int code = function->run(&raw, text, sizeof text);
    free(places);
    if (code) fault("a kernel on a grid of %u: %s", launch->grid[0], text);
    return code ? ILLEGAL_ADDRESS : OK;
}

// Runs what is queued, up to an event if one is given. What a device that hangs was given never ends.
static CUresult run_until(struct event *until) {
    while (first && !hangs) {
        struct op *op = first;
        first = op->next;
        if (!first) last = &first;
        CUresult code = OK;
        switch (op->work) {
            case COPY_IN:
                if (!find(DEVICE, op->device, op->len)) fault("a copy to memory that has been freed");
                else if (memcmp(op->snapshot, op->host, op->len)) fault("pinned memory was written to before the device had read it");
                else memcpy((void *)op->device, op->host, op->len);
                device_us += 1;
                break;
            case COPY_OUT:
                if (!find(DEVICE, op->device, op->len)) fault("a copy from memory that has been freed");
                else memcpy(op->host, (void *)op->device, op->len);
                device_us += 1;
                break;
            case SET:
                if (!find(DEVICE, op->device, op->len)) fault("memory that has been freed is set");
                else memset((void *)op->device, op->value, op->len);
                device_us += 1;
                break;
            case LAUNCH:
                code = run_kernel(&op->launch);
                device_us += number("OCELLI_STANDIN_US", 5);
                break;
            case MARK:
                op->event->done = 1;
                op->event->at = device_us;
                break;
        }
        struct event *event = op->work == MARK ? op->event : NULL;
        free(op->snapshot);
        if (op->work == LAUNCH) free(op->launch.params);
        free(op);
        if (code) { sticky = code; return code; }
        if (event && event == until) break;
    }
    return OK;
}

// ---- calls

// The N-th call that is to fail, of the entry point that is named.
static CUresult planted(const char *name) {
    static int calls;
    char wanted[64];
    int number, code;
    const char *text = env("OCELLI_STANDIN_FAIL");
    if (!text || sscanf(text, "%63[^:]:%d:%d", wanted, &number, &code) != 3 || strcmp(wanted, name) || ++calls != number) return OK;
    if (code >= ILLEGAL_ADDRESS && code < CAPTURE_UNSUPPORTED) sticky = code;
    return code;
}

#define BEGIN(name)                                                                    \
    pthread_mutex_lock(&all);                                                          \
    CUresult result = planted(name);                                                   \
    if (!result && sticky) result = sticky;                                            \
    if (!result && !initialized) { fault(name " before cuInit"); result = NOT_INITIALIZED; }
#define IN_CONTEXT(name)                                                               \
    BEGIN(name)                                                                        \
    if (!result && current != &the_context) { fault(name " without a context"); result = INVALID_CONTEXT; }
#define END pthread_mutex_unlock(&all); return result

CUresult cuDriverGetVersion(int *version) { *version = number("OCELLI_STANDIN_VERSION", 12080); return planted("cuDriverGetVersion"); }
__attribute__((constructor)) static void begin(void) { atexit(report); }
CUresult cuInit(unsigned flags) {
    CUresult result = planted("cuInit");
    initialized = !result;
    return result ? result : flags ? INVALID_VALUE : OK;
}
CUresult cuGetErrorString(CUresult code, const char **text) {
    static _Thread_local char words[32];
    snprintf(words, sizeof words, "error %d of the stand-in", code);
    *text = words;
    return OK;
}
CUresult cuDeviceGetCount(int *count) { *count = 1; return initialized ? OK : NOT_INITIALIZED; }
CUresult cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal ? INVALID_DEVICE : OK; }
CUresult cuDeviceGetName(char *name, int len, int device) { snprintf(name, (size_t)len, "Stand-in H100"); return device == 7 ? OK : INVALID_DEVICE; }
CUresult cuDeviceGetAttribute(int *value, int which, int device) {
    switch (which) {
        case 75: *value = number("OCELLI_STANDIN_ARCH", 90) / 10; break;  // compute capability
        case 76: *value = number("OCELLI_STANDIN_ARCH", 90) % 10; break;
        case 16: *value = number("OCELLI_STANDIN_UNITS", 132); break;     // multiprocessors
        case 13: *value = 1755000; break;  // clock, kHz
        case 36: *value = 2619000; break;  // memory clock
        case 37: *value = 5120; break;     // bus width
        case 97: *value = MOST_SHARED; break;
        case 38: *value = number("OCELLI_STANDIN_L2", 50 << 20); break;
        default: pthread_mutex_lock(&all); fault("attribute %d is not known", which); pthread_mutex_unlock(&all); return INVALID_VALUE;
    }
    return device == 7 ? OK : INVALID_DEVICE;
}
CUresult cuDevicePrimaryCtxRetain(void **context, int device) { BEGIN("cuDevicePrimaryCtxRetain"); (void)device; if (!result) { retained++; *context = &the_context; } END; }
CUresult cuDevicePrimaryCtxRelease_v2(int device) { BEGIN("cuDevicePrimaryCtxRelease"); (void)device; if (!result && --retained < 0) fault("a context is released twice"); END; }
CUresult cuCtxSetCurrent(void *context) { BEGIN("cuCtxSetCurrent"); if (!result) { if (context && (context != &the_context || !retained)) result = fault("a context that is not alive"); current = context; } END; }

CUresult cuStreamCreate(void **stream, unsigned flags) { IN_CONTEXT("cuStreamCreate"); (void)flags; if (!result) { void *one = calloc(1, 8); hold(STREAM, (uint64_t)one, 0, one); *stream = one; } END; }
CUresult cuStreamSynchronize(void *stream) {
    IN_CONTEXT("cuStreamSynchronize");
    if (!result) result = in_capture("cuStreamSynchronize");
    if (!result && !find(STREAM, (uint64_t)stream, 0)) result = fault("a stream that is not alive");
    if (!result) result = run_until(NULL);
    if (!result && hangs) { pthread_mutex_unlock(&all); for (;;) pause(); }
    END;
}
CUresult cuStreamDestroy_v2(void *stream) { IN_CONTEXT("cuStreamDestroy"); if (!result) { run_until(NULL); if (!release(STREAM, (uint64_t)stream)) result = fault("a stream is destroyed twice"); } END; }

CUresult cuEventCreate(void **event, unsigned flags) {
    IN_CONTEXT("cuEventCreate");
    if (!result) { struct event *one = calloc(1, sizeof *one); one->timing = !(flags & 2); hold(EVENT, (uint64_t)one, sizeof *one, one); *event = one; }
    END;
}
static void forget(struct event *event) {
    // An event may be destroyed before the work that it marks is done.
    for (struct op **link = &first; *link;) {
        struct op *op = *link;
        if (op->work == MARK && op->event == event) { *link = op->next; free(op); } else link = &op->next;
    }
    last = &first;
    while (*last) last = &(*last)->next;
}
CUresult cuEventDestroy_v2(void *event) { IN_CONTEXT("cuEventDestroy"); if (!result) { forget(event); if (!release(EVENT, (uint64_t)event)) result = fault("an event is destroyed twice"); } END; }
CUresult cuEventRecord(void *event, void *stream) {
    IN_CONTEXT("cuEventRecord");
    if (!result) result = in_capture("cuEventRecord");
    if (!result && (!find(EVENT, (uint64_t)event, 0) || !find(STREAM, (uint64_t)stream, 0))) result = fault("an event or a stream that is not alive");
    if (!result) { struct event *one = event; one->recorded = 1; one->done = 0; forget(one); push((struct op){.work = MARK, .event = one}); }
    END;
}
CUresult cuEventQuery(void *event) {
    IN_CONTEXT("cuEventQuery");
    if (!result) result = in_capture("cuEventQuery");
    if (!result && !find(EVENT, (uint64_t)event, 0)) result = fault("an event that is not alive");
    struct event *one = event;
    if (!result && one->recorded && !one->done) result = run_until(one);
    if (!result && one->recorded && !one->done) result = NOT_READY;
    END;
}
CUresult cuEventElapsedTime(float *ms, void *begin, void *end) {
    IN_CONTEXT("cuEventElapsedTime");
    struct event *a = begin, *b = end;
    if (!result && (!a->timing || !b->timing || !a->done || !b->done)) result = fault("times of events that have not happened, or have no timing");
    if (!result) *ms = (float)((b->at - a->at) / 1e3);
    END;
}

CUresult cuMemAlloc_v2(uint64_t *address, size_t len) {
    IN_CONTEXT("cuMemAlloc");
    if (!result && !len) result = fault("an allocation of no bytes");
    if (!result) {
        // What is as large as a benchmark of memory is left untouched, so that it takes none.
        int large = len > (size_t)256 << 20;
        char *base = large ? calloc(1, len + 3 * GUARD) : malloc(len + 3 * GUARD);
        if (!base) result = OUT_OF_MEMORY;
        else {
            if (!large) memset(base, 0xa5, len + 3 * GUARD);
            *address = ((uint64_t)base + 2 * GUARD - 1) / GUARD * GUARD;
            hold(DEVICE, *address, len, base);
        }
    }
    END;
}
CUresult cuMemFree_v2(uint64_t address) { IN_CONTEXT("cuMemFree"); if (!result) { result = run_until(NULL); if (!release(DEVICE, address)) result = fault("device memory is freed twice"); } END; }
CUresult cuMemHostAlloc(void **base, size_t len, unsigned flags) {
    IN_CONTEXT("cuMemHostAlloc");
    (void)flags;
    if (!result) { *base = malloc(len ? len : 1); hold(HOST, (uint64_t)*base, len, *base); }
    END;
}
CUresult cuMemFreeHost(void *base) {
    IN_CONTEXT("cuMemFreeHost");
    struct held *one = result ? NULL : find(HOST, (uint64_t)base, 0);
    for (struct op *op = first; one && op; op = op->next)
        if ((op->work == COPY_IN || op->work == COPY_OUT) && (uint64_t)op->host >= one->at && (uint64_t)op->host < one->at + one->len) { fault("pinned memory is freed that the device still uses"); break; }
    if (!result) { run_until(NULL); if (!release(HOST, (uint64_t)base)) result = fault("pinned memory is freed twice"); }
    END;
}
static CUresult copy(const char *name, enum work work, uint64_t device, void *host, size_t len, void *stream) {
    CUresult result = in_capture(name);
    if (!result && !find(STREAM, (uint64_t)stream, 0)) result = fault("%s: a stream that is not alive", name);
    if (!result && !find(DEVICE, device, len)) result = fault("%s: %zu bytes at %#llx are out of bounds", name, len, (unsigned long long)device);
    if (!result && work != SET && !find(HOST, (uint64_t)host, len)) result = fault("%s: memory that is not pinned", name);
    if (result) return result;
    void *snapshot = work == COPY_IN ? memcpy(malloc(len ? len : 1), host, len) : NULL;
    push((struct op){.work = work, .device = device, .host = host, .snapshot = snapshot, .len = len});
    return OK;
}
CUresult cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t len, void *stream) { IN_CONTEXT("cuMemcpyHtoDAsync"); if (!result) result = copy("cuMemcpyHtoDAsync", COPY_IN, to, (void *)from, len, stream); END; }
CUresult cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t len, void *stream) { IN_CONTEXT("cuMemcpyDtoHAsync"); if (!result) result = copy("cuMemcpyDtoHAsync", COPY_OUT, from, to, len, stream); END; }
CUresult cuMemsetD8Async(uint64_t at, unsigned char value, size_t len, void *stream) {
    IN_CONTEXT("cuMemsetD8Async");
    if (!result) result = copy("cuMemsetD8Async", SET, at, NULL, len, stream);
    if (!result) for (struct op *op = first; op; op = op->next) if (!op->next) op->value = value;
    END;
}

CUresult cuModuleLoadData(void **module, const void *image) {
    IN_CONTEXT("cuModuleLoadData");
    if (result) { END; }
    // The image does not tell its length: sections end it.
    const unsigned char *elf = image;
    uint64_t sections;
    unsigned short size, count;
    if (memcmp(elf, "\x7f" "ELF", 4)) { result = INVALID_IMAGE; END; }
    memcpy(&sections, elf + 40, 8);
    memcpy(&size, elf + 58, 2);
    memcpy(&count, elf + 60, 2);
    uint64_t len = sections + (uint64_t)size * count;
    int file = memfd_create("kernel", 0);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    if (file < 0 || write(file, image, len) != (ssize_t)len) { result = OUT_OF_MEMORY; END; }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) { fault("a kernel that is no library of the emulator: %s", dlerror()); result = INVALID_IMAGE; }
    // The file stays open: its name is that of the library.
    if (!result) { hold(MODULE, (uint64_t)library, 0, NULL); *module = library; }
    END;
}
CUresult cuModuleGetFunction(void **function, void *module, const char *name) {
    IN_CONTEXT("cuModuleGetFunction");
    if (result) { END; }
    struct function *one = calloc(1, sizeof *one);
    *(void **)&one->run = dlsym(module, "emulator_run");
    unsigned long (*bytes)(void);
    unsigned (*threads)(void);
    *(void **)&bytes = dlsym(module, "emulator_param_bytes");
    *(void **)&threads = dlsym(module, "emulator_most_threads");
    if (!one->run || !bytes || !threads || strcmp(name, "ocelli_kernel")) { free(one); result = NOT_FOUND; END; }
    *one = (struct function){module, one->run, bytes(), threads(), 0};
    *function = one;
    END;
}
CUresult cuFuncSetAttribute(struct function *function, int which, int value) {
    IN_CONTEXT("cuFuncSetAttribute");
    // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    if (!result && which == 8) { if (value > MOST_SHARED) result = fault("%d bytes of shared memory", value); else function->shared = (unsigned)value; }
    END;
}

struct attribute { int id; char pad[4]; union { char bytes[64]; struct { unsigned x, y, z; } cluster; int flag; } value; };
struct config { unsigned grid[3], block[3], shared; void *stream; struct attribute *attributes; unsigned count; };
static const int CLUSTER = 4, DEPENDENT = 6, COOPERATIVE = 2;

CUresult cuLaunchKernelEx(const struct config *config, struct function *function, void **params, void **extra) {
    IN_CONTEXT("cuLaunchKernelEx");
    (void)extra;
    if (result) { END; }
    struct launch launch = {function, {config->grid[0], config->grid[1], config->grid[2]}, config->block[0], config->shared, 1, 0, 0, NULL};
    for (unsigned i = 0; i < config->count; i++) {
        const struct attribute *one = &config->attributes[i];
        if (one->id == CLUSTER) launch.cluster = one->value.cluster.x;
        else if (one->id == COOPERATIVE) launch.cooperative = one->value.flag != 0;
        else if (one->id == DEPENDENT) launch.overlaps = one->value.flag != 0;
        else result = fault("launch attribute %d", one->id);
    }
    if (!find(STREAM, (uint64_t)config->stream, 0)) result = fault("a launch in a stream that is not alive");
    if (!config->grid[0] || !config->grid[1] || !config->grid[2] || config->grid[1] > 65535 || config->grid[2] > 65535) result = fault("a grid of %u x %u x %u", config->grid[0], config->grid[1], config->grid[2]);
    if (!launch.threads || launch.threads > function->most_threads || config->block[1] != 1 || config->block[2] != 1) result = fault("%u threads, of at most %u", launch.threads, function->most_threads);
    if (launch.shared > 48 << 10 && launch.shared > function->shared) result = fault("%u bytes of shared memory where %u were asked for", launch.shared, function->shared);
    if (launch.cluster < 1 || launch.cluster > 8 || launch.grid[0] % launch.cluster) result = fault("a cluster of %u in a grid of %u", launch.cluster, launch.grid[0]);
    if (result) { END; }
    overlapping += launch.overlaps != 0;
    if (launch.overlaps && overlap_is("never")) result = fault("a launch that may begin before the one before it ends");
    if (launch.overlaps && capturing && overlap_is("launch")) { refused++; broken = 1; result = INVALID_HANDLE; }
    if (result) { END; }
    // The driver copies as many bytes as the kernel's parameter has.
    if (posix_memalign(&launch.params, 64, function->param_bytes + 64)) abort();
    memcpy(launch.params, params[0], function->param_bytes);
    launches++;
    const char *hang = env("OCELLI_STANDIN_HANG");
    if (hang && launches >= atoi(hang)) hangs = 1;
    if (capturing) {
        capturing->launches = realloc(capturing->launches, (capturing->count + 1) * sizeof launch);
        capturing->launches[capturing->count++] = launch;
    } else push((struct op){.work = LAUNCH, .launch = launch});
    END;
}

CUresult cuStreamBeginCapture_v2(void *stream, int mode) {
    IN_CONTEXT("cuStreamBeginCapture");
    (void)mode;
    if (!result && (capturing || !find(STREAM, (uint64_t)stream, 0))) result = fault("a recording inside of another, or of a stream that is not alive");
    if (!result) { capturing = calloc(1, sizeof *capturing); broken = 0; }
    END;
}
static void destroy(struct graph *graph) {
    for (size_t i = 0; i < graph->count; i++) free(graph->launches[i].params);
    free(graph->launches);
    graph->count = 0;
    graph->launches = NULL;
}
CUresult cuStreamEndCapture(void *stream, void **graph) {
    IN_CONTEXT("cuStreamEndCapture");
    (void)stream;
    if (!result && !capturing) result = fault("a recording ends that has not begun");
    if (!result) {
        struct graph *one = capturing;
        capturing = NULL;
        hold(GRAPH, (uint64_t)one, sizeof *one, one);
        *graph = one;
        if (broken) { destroy(one); release(GRAPH, (uint64_t)one); *graph = NULL; result = CAPTURE_INVALIDATED; }
    }
    END;
}
CUresult cuGraphInstantiateWithFlags(void **exec, struct graph *graph, unsigned long long flags) {
    IN_CONTEXT("cuGraphInstantiate");
    (void)flags;
    if (!result && (!graph || !find(GRAPH, (uint64_t)graph, 0))) result = fault("a graph that is not alive");
    for (size_t i = 0; !result && overlap_is("instantiate") && i < graph->count; i++)
        if (graph->launches[i].overlaps) { refused++; result = NOT_SUPPORTED; }
    if (!result) {
        struct graph *one = calloc(1, sizeof *one);
        one->count = graph->count;
        one->launches = calloc(graph->count + 1, sizeof *one->launches);
        for (size_t i = 0; i < graph->count; i++) {
            one->launches[i] = graph->launches[i];
            size_t len = graph->launches[i].function->param_bytes;
            if (posix_memalign(&one->launches[i].params, 64, len + 64)) abort();
            memcpy(one->launches[i].params, graph->launches[i].params, len);
        }
        hold(EXEC, (uint64_t)one, sizeof *one, one);
        *exec = one;
    }
    END;
}
CUresult cuGraphDestroy(struct graph *graph) { IN_CONTEXT("cuGraphDestroy"); if (!result && graph) { destroy(graph); if (!release(GRAPH, (uint64_t)graph)) result = fault("a graph is destroyed twice"); } END; }
CUresult cuGraphExecDestroy(struct graph *exec) { IN_CONTEXT("cuGraphExecDestroy"); if (!result) { destroy(exec); if (!release(EXEC, (uint64_t)exec)) result = fault("recorded launches are destroyed twice"); } END; }
CUresult cuGraphLaunch(struct graph *exec, void *stream) {
    IN_CONTEXT("cuGraphLaunch");
    if (!result) result = in_capture("cuGraphLaunch");
    if (!result && (!find(EXEC, (uint64_t)exec, 0) || !find(STREAM, (uint64_t)stream, 0))) result = fault("recorded launches or a stream that are not alive");
    for (size_t i = 0; !result && i < exec->count; i++) {
        struct launch launch = exec->launches[i];
        if (posix_memalign(&launch.params, 64, launch.function->param_bytes + 64)) abort();
        memcpy(launch.params, exec->launches[i].params, launch.function->param_bytes);
        push((struct op){.work = LAUNCH, .launch = launch});
    }
    END;
}

CUresult cuTensorMapEncodeTiled(void *map, int dtype, unsigned rank, void *address, const uint64_t *shape, const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave, int swizzle, int l2, int fill) {
    static const int bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
    IN_CONTEXT("cuTensorMapEncodeTiled");
    (void)interleave, (void)l2, (void)fill;
    if (result) { END; }
    uint64_t element = dtype >= 0 && dtype < 10 ? (uint64_t)bytes[dtype] : 0, extent = element;
    if (!element || rank < 1 || rank > 5) result = fault("a tensor map of %u axes, type %d", rank, dtype);
    if ((uint64_t)map % 64) result = fault("a tensor map that is not aligned to 64 bytes");
    if ((uint64_t)address % 16) result = fault("a tensor that is not aligned to 16 bytes");
    uint64_t words[16] = {0x6f63656c6c69, (uint64_t)address, rank, element, swizzle == 3};
    for (unsigned i = 0; !result && i < rank; i++) {
        if (!shape[i] || shape[i] > 1ull << 32) result = fault("a tensor map's axis %u of %llu", i, (unsigned long long)shape[i]);
        if (!box[i] || box[i] > 256 || steps[i] != 1) result = fault("a box of %u in axis %u", box[i], i);
        if (i && (strides[i - 1] % 16 || strides[i - 1] >= 1ull << 40)) result = fault("a stride of %llu bytes", (unsigned long long)strides[i - 1]);
        if (i && !result) extent += (shape[i] - 1) * strides[i - 1];
        else if (!result) extent = shape[0] * element;
        words[5 + i] = shape[i];
        if (i) words[9 + i] = strides[i - 1];
        words[14 + i / 4] |= (uint64_t)box[i] << (16 * (i % 4));
    }
    uint64_t row = box[0] * element;
    if (!result && (row % 16 || (swizzle == 3 && row > 128))) result = fault("a box's rows of %llu bytes", (unsigned long long)row);
    if (!result && !find(DEVICE, (uint64_t)address, extent)) result = fault("a tensor of %llu bytes beyond its memory", (unsigned long long)extent);
    if (!result) memcpy(map, words, sizeof words);
    END;
}
