// Just enough of Linux to run one static program in ring 0 of an emulated processor: it loads the ELF file
// at PROGRAM, with the arguments at ARGUMENTS (strings, each ended by a zero byte; an empty one ends them),
// and answers the system calls that glibc makes to start, to print and to end. What is printed goes to port
// 0xE9. Any exception ends the machine with a line that names it. Program and arguments are in the ROM, whose
// 4 MiB end where the first 4 GiB do.

#include <elf.h>
#include <stdint.h>

#define PROGRAM 0xffc00000ul
#define ARGUMENTS 0xffff6000ul
#define HEAP 0x8000000ul
#define HEAP_END 0x1e000000ul
#define STACK_TOP 0x1ff00000ul
#define MAPPED HEAP_END  // mmap goes down from here, brk up from HEAP

typedef uint64_t u64;

static inline void out(uint16_t port, uint8_t value) {
  __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}
static void put(const char* text) {
  while (*text) out(0xe9, (uint8_t)*text++);
}
static void put_hex(u64 value) {
  for (int shift = 60; shift >= 0; shift -= 4) out(0xe9, "0123456789abcdef"[value >> shift & 15]);
}
static void write_msr(uint32_t msr, u64 value) {
  __asm__ volatile("wrmsr" ::"c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}
static __attribute__((noreturn)) void stop(void) {
  for (const char* p = "Shutdown"; *p; ++p) out(0x8900, (uint8_t)*p);
  for (;;) __asm__ volatile("hlt");
}

static void copy(void* to, const void* from, u64 bytes) {
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
}
static void clear(void* to, u64 bytes) {
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(0) : "memory");
}

static u64 heap = HEAP, mapped = MAPPED;

static __attribute__((noreturn)) void exit_with(int status) {
  put("\nexit status: ");
  put_hex((u64)status);
  put("\n");
  stop();
}

// Numbers and structures are those of Linux on x86-64.
static __attribute__((used)) u64 system_call(u64 number, u64 a, u64 b, u64 c) {
  enum { EBADF = -9, ENOMEM = -12, EINVAL = -22, ENOTTY = -25, ENOSYS = -38 };
  switch (number) {
    case 1:  // write
      if (a != 1 && a != 2) return EBADF;
      for (u64 i = 0; i < c; ++i) out(0xe9, ((const uint8_t*)b)[i]);
      return c;
    case 9:  // mmap, anonymous
      b = (b + 4095) & ~4095ul;
      if (mapped - b < heap) return ENOMEM;
      mapped -= b;
      clear((void*)mapped, b);
      return mapped;
    case 12:  // brk
      if (a >= HEAP && a <= mapped) {
        if (a > heap) clear((void*)heap, a - heap);
        heap = a;
      }
      return heap;
    case 10:   // mprotect
    case 11:   // munmap
    case 14:   // rt_sigprocmask
    case 202:  // futex
    case 273:  // set_robust_list
      return 0;
    case 16:  // ioctl
      return ENOTTY;
    case 20: {  // writev
      u64 total = 0;
      for (u64 i = 0; i < c; ++i) {
        const u64* piece = (const u64*)b + 2 * i;
        total += system_call(1, a, piece[0], piece[1]);
      }
      return total;
    }
    case 39:   // getpid
    case 186:  // gettid
    case 218:  // set_tid_address
      return 1;
    case 158:                                  // arch_prctl
      if (a == 0x1002) {                       // ARCH_SET_FS
        write_msr(0xc0000100, b);
        return 0;
      }
      return a == 0x1023 && b == 18 ? 0 : EINVAL;  // ARCH_REQ_XCOMP_PERM of tile data
    case 60:
    case 231:
      exit_with((int)a);
    default:
      return ENOSYS;
  }
}

static __attribute__((used)) u64 program_rsp;
static __attribute__((used, aligned(16))) uint8_t call_stack[16384];

// The kernel shares ring 0 with the program, and its red zone must live: hence a stack of its own.
__attribute__((naked)) static void system_call_entry(void) {
  __asm__ volatile(
      "mov %rsp, program_rsp\n"
      "lea call_stack + 16384, %rsp\n"
      "push %rcx; push %r11; push %rdi; push %rsi; push %rdx; push %r8; push %r9; push %r10\n"
      "mov %rdx, %rcx; mov %rsi, %rdx; mov %rdi, %rsi; mov %rax, %rdi\n"
      "call system_call\n"
      "pop %r10; pop %r9; pop %r8; pop %rdx; pop %rsi; pop %rdi; pop %r11; pop %rcx\n"
      "mov program_rsp, %rsp\n"
      "jmp *%rcx\n");
}

static __attribute__((used, noreturn)) void exception(const u64* frame, u64 vector) {
  put("\nexception ");
  put_hex(vector);
  put(" frame");
  for (int i = 0; i < 4; ++i) put(" "), put_hex(frame[i]);
  exit_with(128 + (int)vector);
}

#define VECTORS 22
extern const char vectors[];
__asm__(
    ".balign 16\nvectors:\n"
    ".set i, 0\n.rept 22\n.balign 16\npush $0\nmov %rsp, %rdi\nmov $i, %esi\njmp trap\n.set i, i + 1\n.endr\n"
    "trap: lea call_stack + 16384, %rsp\nadd $8, %rdi\ncall exception\n");

static struct {
  uint16_t low, selector, flags, middle;
  uint32_t high, zero;
} gates[VECTORS];

static void run(const char* program, const char* arguments) {
  const Elf64_Ehdr* elf = (const Elf64_Ehdr*)program;
  const Elf64_Phdr* parts = (const Elf64_Phdr*)(program + elf->e_phoff);
  u64 headers = 0;
  for (int i = 0; i < elf->e_phnum; ++i) {
    if (parts[i].p_type != PT_LOAD) continue;
    copy((void*)parts[i].p_vaddr, program + parts[i].p_offset, parts[i].p_filesz);
    clear((void*)(parts[i].p_vaddr + parts[i].p_filesz), parts[i].p_memsz - parts[i].p_filesz);
    if (parts[i].p_offset == 0) headers = parts[i].p_vaddr + elf->e_phoff;
  }
  static u64 words[64];
  int n = 1;
  for (; *arguments; ++n) {
    words[n] = (u64)arguments;
    while (*arguments++) {
    }
  }
  words[0] = (u64)(n - 1);
  n += 2;  // the null pointers that end the arguments and an empty environment
  const u64 facts[] = {AT_PHDR,   headers, AT_PHENT,  sizeof(Elf64_Phdr), AT_PHNUM, elf->e_phnum,
                       AT_PAGESZ, 4096,    AT_RANDOM, ARGUMENTS,          AT_ENTRY, elf->e_entry,
                       AT_SECURE, 0,       AT_NULL,   0};
  for (unsigned i = 0; i < sizeof(facts) / 8; ++i) words[n++] = facts[i];
  u64* stack = (u64*)STACK_TOP - 64;
  copy(stack, words, sizeof(words));
  __asm__ volatile("mov %0, %%rsp\nxor %%edx, %%edx\nxor %%ebp, %%ebp\njmp *%1" ::"D"(stack), "a"(elf->e_entry)
                   : "memory");
}

__attribute__((section(".start"), used)) void start(void) {
  for (int i = 0; i < VECTORS; ++i) {
    const u64 at = (u64)vectors + 16u * (unsigned)i;
    gates[i].low = (uint16_t)at;
    gates[i].selector = 0x18;
    gates[i].flags = 0x8e00;
    gates[i].middle = (uint16_t)(at >> 16);
  }
  struct __attribute__((packed)) {
    uint16_t limit;
    u64 base;
  } idt = {sizeof(gates) - 1, (u64)gates};
  __asm__ volatile("lidt %0" ::"m"(idt));
  write_msr(0xc0000081, (u64)0x18 << 32);  // STAR: code 18, data 20
  write_msr(0xc0000082, (u64)system_call_entry);
  write_msr(0xc0000084, 0x200 | 0x400);    // clear IF and DF
  run((const char*)PROGRAM, (const char*)ARGUMENTS);
}
