# llava.c. `make` builds build/llava and the libraries; `make help` lists what else there is.
#
#   make CC=clang                another compiler
#   make SAN=address,undefined   under sanitizers
#   make V=1                     with the commands shown
#
# Compiler and sanitizers choose the variant, which is a folder of its own: build/main, build/clang, build/san, ...

VERSION := 0.1.0
SONAME  := libllava.so.0
PREFIX  ?= /usr/local
FUZZ_S  ?= 60
OPT     ?= -O2 -g
Q       := $(if $(V),,@)

ifeq ($(origin CC),default)
CC      := gcc
endif
CLANG   := $(or $(notdir $(shell command -v clang-14)),clang)
ifdef FUZZ
CC      := $(CLANG)
SAN     := fuzzer-no-link,address,undefined
endif
clang   := $(findstring clang,$(CC))
ifeq ($(origin CXX),default)
CXX     := $(if $(clang),$(subst clang,clang++,$(CC)),g++)
endif
empty   :=
variant := $(or $(if $(FUZZ),fuzz),$(subst $(empty) ,-,$(strip $(clang) $(if $(SAN),san))),main)
B       := build/$(variant)

PKGS    := jansson libcurl libjpeg libpng libwebp sentencepiece zlib
WARN    := -Wall -Wextra -Wshadow -Wvla -Wpointer-arith $(if $(clang),-Wno-pass-failed,-Wno-format-truncation) -Werror
SANFLAG := $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)
COMMON  := $(OPT) $(WARN) $(SANFLAG) -fPIC -fopenmp -fvisibility=hidden -ffp-contract=off
CPPFLAGS += -Iinclude -Isrc -D_POSIX_C_SOURCE=200809L -DLLAVA_VERSION='"$(VERSION)"' -MMD -MP
CPPFLAGS += $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
CFLAGS  += -std=c11 $(COMMON) -Wstrict-prototypes -Wmissing-prototypes
CXXFLAGS += -std=c++17 $(COMMON)
LDFLAGS += $(SANFLAG) -fopenmp
LIBS    := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lpthread -lm
LDLIBS  += $(LIBS)

FLAGS   := $(CC) $(CXX) $(CPPFLAGS) $(CFLAGS) $(CXXFLAGS) $(LDFLAGS) $(LDLIBS)

SRC     := $(wildcard src/*/*.c src/kern/*/*.c)
OBJ     := $(SRC:src/%.c=$(B)/obj/%.o) $(patsubst src/%.cc,$(B)/obj/%.o,$(wildcard src/*/*.cc))
CMDOBJ  := $(filter $(B)/obj/cmd/%,$(OBJ))
LIBOBJ  := $(filter-out $(CMDOBJ),$(OBJ))

.PHONY: all
all: $(B)/llava $(B)/libllava.a $(B)/libllava.so ## build/llava and the libraries
ifeq ($(variant),main)
	@ln -sfn main/llava build/llava
endif

# ---- program and libraries

define compile
	@mkdir -p $(@D)
	@echo '  CC  $<'
	$(Q)$(CC) $(CPPFLAGS) $1 $(CFLAGS) -c -o $@ $<
endef
define link
	@mkdir -p $(@D)
	$(Q)$(CXX) $(LDFLAGS) $1 -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LDLIBS) $2
endef

$(B)/llava: $(CMDOBJ) $(B)/libllava.a
	$(call link)
$(B)/libllava.a: $(LIBOBJ)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^
$(B)/libllava.so: $(LIBOBJ) tools/exports.map
	$(call link,-shared -Wl$(comma)-soname$(comma)$(SONAME) -Wl$(comma)--version-script=tools/exports.map)
$(B)/obj/%.o: src/%.c $(B)/flags
	$(call compile)
$(B)/obj/%.o: src/%.cc $(B)/flags
	@mkdir -p $(@D)
	@echo '  CXX $<'
	$(Q)$(CXX) $(CPPFLAGS) $(CXXFLAGS) -c -o $@ $<
comma   := ,

# Instruction sets live in files of their own; the rest of the program runs on any x86-64.
$(B)/obj/kern/cpu/%_avx2.o:   CFLAGS += -mavx2 -mfma -mf16c -O3
$(B)/obj/kern/cpu/%_avx512.o: CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mavx512vnni -mfma -mf16c -O3

# Changes only when the flags do: then everything is built again.
$(B)/flags: FORCE | $(B)/
	@pkg-config --exists $(PKGS) || { echo 'make: libraries are missing; `tools/deps build` installs them'; exit 1; }
	$(file >$@.new,$(FLAGS))
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@
$(B)/:
	@mkdir -p $@
.PHONY: FORCE

# ---- tests: tests/FOLDER/NAME.c is a program of its own

CHECKS  := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/check/*.c))
GRADS   := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/grad/*.c))
FUZZERS := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/fuzz/*.c))
TESTS   := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/unit/*.c tests/golden/*.c)) $(CHECKS) $(GRADS)
EXAMPLES := $(patsubst %.c,$(B)/%,$(wildcard examples/*.c))
.PHONY: tests fuzzers examples
tests: $(TESTS) fuzzers ## every test program
fuzzers: $(FUZZERS)
examples: $(EXAMPLES) ## what examples/ holds

$(B)/tests/%.o: tests/%.c $(B)/flags
	$(call compile,-Itests)
$(B)/examples/%.o: examples/%.c $(B)/flags
	$(call compile)
$(TESTS) $(EXAMPLES): $(B)/%: $(B)/%.o $(B)/libllava.a
	$(call link,,-lcmocka)

# A fuzz target replays its corpus as a test, unless it is linked with clang's fuzzer (FUZZ=1).
$(B)/tests/fuzz/%.o: CFLAGS += -Wno-missing-prototypes
$(FUZZERS): $(B)/%: $(B)/%.o $(if $(FUZZ),,$(B)/tests/help/replay.o) $(B)/libllava.a
	$(call link,$(if $(FUZZ),-fsanitize=fuzzer))

# The reference kernels once more with real = double. Gradient tests link them before the library, whose own are then
# left out; kernel checks link them beside it, with all names hidden but kern_ref, which becomes kern_ref64.
OBJ64   := $(patsubst src/%.c,$(B)/obj64/%.o,$(wildcard src/kern/ref/*.c))
$(GRADS): $(OBJ64)
$(CHECKS): $(B)/obj64/kern_ref64.o
$(B)/obj64/%.o: src/%.c $(B)/flags
	$(call compile,-DREAL=double)
$(B)/obj64/kern_ref64.o: $(OBJ64)
	$(Q)$(LD) -r -o $@ $^
	$(Q)objcopy --redefine-sym kern_ref=kern_ref64 --keep-global-symbol=kern_ref64 $@

.SECONDARY:
-include $(patsubst %.o,%.d,$(OBJ) $(OBJ64)) $(addsuffix .d,$(TESTS) $(FUZZERS) $(EXAMPLES)) $(B)/tests/help/replay.d

# ---- what people type

MAKE_   = $(MAKE) --no-print-directory
BUILD_  = env -u MAKEFLAGS $(MAKE_) -j$(shell nproc)
SHOW    = models/demo/pictures/red-apple.png

.PHONY: help deps demo check check-full lint fuzz bench format install uninstall clean
help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## /\1\t/p' Makefile | sort | while IFS='	' read -r name text; do \
	    printf '  make %-12s %s\n' "$$name" "$$text"; done

deps: ## installs the Debian packages that are missing: build, tests
	@tools/deps build test

demo: ## installs what is missing, builds, and answers a question about a picture
	@tools/deps build
	@$(MAKE_) all
	build/llava run --model-path models/demo --image-file $(SHOW) --query "What is this?"

check: ## installs what is missing, builds, lints and runs every CPU test
	@tools/deps build test
	@tests/run --step 'build: $(BUILD_) CC=$(CC) SAN=$(SAN) all tests examples' --step 'lint: tools/lint.py' $(B)

check-full: ## the tests under sanitizers, and everything built by clang too
	@tools/deps build test full
	@tests/run --step 'clang: $(BUILD_) CC=$(CLANG) all tests examples' \
	    --step 'sanitizers: $(BUILD_) SAN=address,undefined all tests examples' build/san

lint: ## the rules of the house: rooms, names, lengths, words
	@tools/lint.py

fuzz: ## each fuzz target for FUZZ_S seconds (60)
	@tools/deps build full
	@$(MAKE_) FUZZ=1 fuzzers
	@for f in $(notdir $(FUZZERS)); do \
	    echo "  FUZZ $$f"; \
	    mkdir -p build/fuzz/corpus/$$f && \
	    build/fuzz/tests/fuzz/$$f -max_total_time=$(FUZZ_S) -timeout=20 -rss_limit_mb=2048 -verbosity=0 \
	        -artifact_prefix=build/fuzz/$$f- build/fuzz/corpus/$$f \
	        $$(ls -d tests/fuzz/corpus/$$f 2>/dev/null) || exit 1; done

bench: all ## speed of this machine on 1.26 G random parameters, one JSON object a line
	@for type in f32 bf16 f16; do build/llava bench --random 1b --prompt 640 --gen 32 --dtype $$type; done

format: ## clang-format on the lines that differ from the last commit
	@git clang-format-14 --extensions c,h,cc HEAD

D = $(DESTDIR)$(PREFIX)
install: all ## PREFIX=/usr/local DESTDIR=: program, header, libraries, llava.pc
	install -d $(D)/bin $(D)/include $(D)/lib/pkgconfig
	install $(B)/llava $(D)/bin/llava
	install -m 644 include/llava.h include/llava_batch.h $(D)/include/
	install -m 644 $(B)/libllava.a $(D)/lib/libllava.a
	install -m 644 $(B)/libllava.so $(D)/lib/libllava.so.$(VERSION)
	ln -sf libllava.so.$(VERSION) $(D)/lib/$(SONAME)
	ln -sf $(SONAME) $(D)/lib/libllava.so
	sed 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|; s|@LIBS@|$(LIBS)|' llava.pc.in > $(D)/lib/pkgconfig/llava.pc

uninstall: ## what install put there
	rm -f $(D)/bin/llava $(D)/include/llava.h $(D)/include/llava_batch.h $(D)/lib/libllava.* $(D)/lib/pkgconfig/llava.pc

clean: ## removes build/
	rm -rf build
