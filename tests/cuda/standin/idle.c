// A kernel that does nothing, as a library of the emulator: in place of those that measure what a device can do.
int emulator_run(const void *launch, char *text, unsigned long len) {
    (void)launch, (void)text, (void)len;
    return 0;
}
unsigned long emulator_param_bytes(void) { return 0; }
unsigned emulator_most_threads(void) { return 1024; }
