# llava.c: `make` builds build/llava and the libraries; `make help` lists the rest.
#
#   make SAN=address,undefined   a build of its own under sanitizers, in build/san
#   make CC=clang                another compiler, in build/clang

CC      ?= gcc
CXX     ?= g++
ifeq ($(origin CC),default)
CC      := gcc
endif
PREFIX  ?= /usr/local
VERSION := 0.1.0

variant := $(if $(SAN),san,$(if $(findstring clang,$(CC)),clang,$(if $(FUZZ),fuzz,main)))
B       := build/$(variant)
PKGS    := jansson libcurl libjpeg libpng libwebp sentencepiece zlib
WARN    := -Wall -Wextra -Wshadow -Wvla -Wpointer-arith -Wno-format-truncation -Werror
OPT     ?= -O2 -g
SANFLAG := $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)
CPPFLAGS += -Iinclude -Isrc -D_POSIX_C_SOURCE=200809L -DLLAVA_VERSION='"$(VERSION)"' -MMD -MP
COMMON  := $(OPT) $(WARN) $(SANFLAG) -fPIC -fopenmp -fvisibility=hidden -ffp-contract=off
CFLAGS  += -std=c11 $(COMMON) -Wstrict-prototypes -Wmissing-prototypes $(shell pkg-config --cflags $(PKGS))
CXXFLAGS += -std=c++17 $(COMMON) $(shell pkg-config --cflags sentencepiece)
LDLIBS  += $(shell pkg-config --libs $(PKGS)) -lstdc++ -lpthread -lm
LDFLAGS += $(SANFLAG) -fopenmp

SRC     := $(wildcard src/*/*.c src/kern/*/*.c)
SRCXX   := $(wildcard src/*/*.cc)
OBJ     := $(SRC:src/%.c=$(B)/obj/%.o) $(SRCXX:src/%.cc=$(B)/obj/%.o)
LIBOBJ  := $(filter-out $(B)/obj/cmd/%,$(OBJ))
CMDOBJ  := $(filter $(B)/obj/cmd/%,$(OBJ))

# Instruction sets live in files of their own; the rest of the program runs on any x86-64.
$(B)/obj/kern/cpu/%_avx2.o:   CFLAGS += -mavx2 -mfma -mf16c -O3
$(B)/obj/kern/cpu/%_avx512.o: CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mavx512vnni -mfma -mf16c -O3

.PHONY: all help
all: $(B)/llava $(B)/libllava.a $(B)/libllava.so
	@ln -sfn $(variant)/llava build/llava

$(B)/llava: $(CMDOBJ) $(B)/libllava.a
	@$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(B)/libllava.a: $(LIBOBJ)
	@rm -f $@
	@$(AR) rcs $@ $^
$(B)/libllava.so: $(LIBOBJ)
	@$(CC) -shared -Wl,-soname,libllava.so.0 $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(B)/obj/%.o: src/%.c
	@mkdir -p $(@D)
	@echo '  CC  $<'
	@$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<
$(B)/obj/%.o: src/%.cc
	@mkdir -p $(@D)
	@echo '  CXX $<'
	@$(CXX) $(CPPFLAGS) $(CXXFLAGS) -c -o $@ $<

# Tests: every tests/FOLDER/NAME.c is a program of its own (cmocka), linked with the library.
TESTS   := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/unit/*.c tests/check/*.c tests/golden/*.c))
$(B)/tests/%: tests/%.c $(B)/libllava.a
	@mkdir -p $(@D)
	@echo '  CC  $<'
	@$(CC) $(CPPFLAGS) -Itests $(CFLAGS) $(LDFLAGS) -o $@ $< $(B)/libllava.a $(LDLIBS) -lcmocka

# The reference kernels once more with real = double. Gradient tests link them before the library, whose own are then
# left out; kernel checks link them beside it, with all names hidden but kern_ref, which becomes kern_ref64.
OBJ64   := $(patsubst src/%.c,$(B)/obj64/%.o,$(wildcard src/kern/ref/*.c))
GRAD    := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/grad/*.c))
TESTS   += $(GRAD)
$(B)/obj64/%.o: src/%.c
	@mkdir -p $(@D)
	@echo '  CC  $@'
	@$(CC) $(CPPFLAGS) -DREAL=double $(CFLAGS) -c -o $@ $<
$(B)/obj64/kern_ref64.o: $(OBJ64)
	@$(LD) -r -o $@ $^
	@objcopy --redefine-sym kern_ref=kern_ref64 --keep-global-symbol=kern_ref64 $@
$(B)/tests/grad/%: tests/grad/%.c $(OBJ64) $(B)/libllava.a
	@mkdir -p $(@D)
	@echo '  CC  $@'
	@$(CC) $(CPPFLAGS) -Itests $(CFLAGS) $(LDFLAGS) -o $@ $< $(OBJ64) $(B)/libllava.a $(LDLIBS) -lcmocka
$(B)/tests/check/%: tests/check/%.c $(B)/obj64/kern_ref64.o $(B)/libllava.a
	@mkdir -p $(@D)
	@echo '  CC  $@'
	@$(CC) $(CPPFLAGS) -Itests $(CFLAGS) $(LDFLAGS) -o $@ $< $(B)/obj64/kern_ref64.o $(B)/libllava.a $(LDLIBS) -lcmocka
-include $(OBJ64:.o=.d)

.PHONY: tests
tests: $(TESTS)

-include $(OBJ:.o=.d) $(TESTS:=.d)
