// The 4 KiB at the top of the first 4 GiB: from reset to long mode, then to kernel.c, which lies below them
// and is copied to 2 MiB. Memory is mapped one to one; interrupts stay off.

    .set kernel, 0x200000
    .set kernel_image, 0xffff7000
    .set kernel_bytes, 0x8000
    .set tables, 0x10000       // page tables: one of level 4, one of level 3 with pages of 1 GiB

    .section .text
    .globl _start
    .code16
_start:
    cli
    mov $(gdt_pointer - _start + 0xf000), %bx
    lgdtl %cs:(%bx)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x08, $protected

    .code32
protected:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $tables, %edi
    xor %eax, %eax
    mov $2048, %ecx
    rep stosl
    movl $(tables + 0x1000 + 3), tables
    movl $0x83, tables + 0x1000            // present, writable, 1 GiB
    movl $0x40000083, tables + 0x1008
    movl $0x80000083, tables + 0x1010
    movl $0xc0000083, tables + 0x1018
    mov $tables, %eax
    mov %eax, %cr3
    mov $0x40620, %eax                     // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
    mov %eax, %cr4
    mov $0xc0000080, %ecx                  // EFER: SYSCALL, long mode
    rdmsr
    or $0x101, %eax
    wrmsr
    mov %cr0, %eax
    and $~0x0c, %eax                       // not EM, not TS
    or $0x80000022, %eax                   // paging, MP, NE
    mov %eax, %cr0
    ljmpl $0x18, $long_mode

    .code64
long_mode:
    xor %ecx, %ecx                         // XCR0: all that the processor has of x87 ... AVX-512 and AMX
    mov $0xd, %eax
    cpuid
    and $0x600e7, %eax
    xor %edx, %edx
    xor %ecx, %ecx
    xsetbv
    mov $kernel_image, %esi
    mov $kernel, %edi
    mov $kernel_bytes, %ecx
    rep movsb
    mov $0x1f0000, %esp
    mov $kernel, %eax
    jmp *%rax

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9a000000ffff               // 08: code, 32 bits
    .quad 0x00cf92000000ffff               // 10: data
    .quad 0x00af9a000000ffff               // 18: code, 64 bits
    .quad 0x00cf92000000ffff               // 20: data, where SYSCALL looks for it
gdt_pointer:
    .word . - gdt - 1
    .long gdt

    .org 0xff0
    .code16
reset:
    jmp _start
    .org 0x1000
