// Appended to each kernel: calls it with the bytes of its parameters.
template <typename P> static void emulator_call(void (*kernel)(P), const void* params) { kernel(*static_cast<const P*>(params)); }
template <typename P> static constexpr unsigned long emulator_size(void (*)(P)) { return sizeof(P); }
extern "C" void emulator_kernel(const void* params) { emulator_call(&ocelli_kernel, params); }
extern "C" __attribute__((visibility("default"))) unsigned long emulator_param_bytes() { return emulator_size(&ocelli_kernel); }
extern "C" __attribute__((visibility("default"))) unsigned emulator_most_threads() { return EMULATOR_MOST_THREADS; }
