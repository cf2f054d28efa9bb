# llava.c. `make` builds build/llava and the libraries; `make help` lists what else there is.
#
#   make CC=clang                another compiler
#   make SAN=address,undefined   under sanitizers
#   make GPU=cuda [ARCH=80,90a]  with NVIDIA's GPUs; make GPU=hip [ARCH=gfx90a] [HIPCC=...] with AMD's and Hygon's
#   make GPU=emu [WARP=64]       with a GPU emulated on the CPU, for tests
#   make V=1                     with the commands shown
#
# Compiler, GPU and sanitizers choose the variant, which is a folder of its own: build/main, build/cuda, build/san, ...

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
comma   := ,
gpu     := $(if $(GPU),$(GPU)$(if $(filter emu,$(GPU)),$(or $(WARP),32)))
variant := $(or $(if $(FUZZ),fuzz),$(subst $(empty) ,-,$(strip $(clang) $(gpu) $(if $(SAN),san))),main)
B       := build/$(variant)

PKGS    := jansson libcurl libjpeg libpng libwebp sentencepiece zlib
WARN    := -Wall -Wextra -Wshadow -Wvla -Wpointer-arith $(if $(clang),-Wno-pass-failed,-Wno-format-truncation) -Werror
SANFLAG := $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)
# A check that keeps kernels' accumulators out of registers, which makes them three times as slow. No fuzz target runs them:
# there they are plain, which takes minutes less to compile.
KERNSAN := $(if $(FUZZ),-fno-sanitize=all,$(if $(findstring address,$(SAN)),-fno-sanitize-address-use-after-scope))
COMMON  := $(OPT) $(WARN) $(SANFLAG) -fPIC -fopenmp -fvisibility=hidden -ffp-contract=off
CPPFLAGS += -Iinclude -Isrc -D_POSIX_C_SOURCE=200809L -DLLAVA_VERSION='"$(VERSION)"' -MMD -MP
CPPFLAGS += $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
CFLAGS  += -std=c11 $(COMMON) -Wstrict-prototypes -Wmissing-prototypes
CXXFLAGS += -std=c++17 $(COMMON)
LDFLAGS += $(SANFLAG) -fopenmp
LIBS    := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lpthread -lm
LDLIBS  += $(LIBS)

# The compiler of .cu files, and what the program is linked with for them. src/dev/gpu.h has the language.
CUDA    ?= /usr/local/cuda
ifeq ($(GPU),cuda)
archs   := $(subst $(comma), ,$(or $(ARCH),80,89,90a))
GPUFLAGS := -std=c++17 -O3 -g -lineinfo --expt-relaxed-constexpr -DGPU_WARP=32 -ccbin g++ -Werror all-warnings \
            $(if $(filter 90a,$(archs)),-DGPU_HAS_WGMMA=1) $(foreach a,$(archs),-gencode arch=compute_$a,code=sm_$a) \
            -Xcompiler -fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra,-Wshadow,-Wno-unused-function
GPUCC   := $(CUDA)/bin/nvcc $(GPUFLAGS)
GPULIBS := -L$(CUDA)/lib64 -lcudart_static -ldl -lrt
else ifeq ($(GPU),hip)
HIPCC   ?= $(or $(shell command -v hipcc),$(lastword $(wildcard /opt/rocm*/bin/hipcc /opt/dtk*/bin/hipcc)),hipcc)
archs   := $(subst $(comma), ,$(or $(ARCH),gfx906,gfx90a))
GPUCC   := $(HIPCC) -x hip -std=c++17 -O3 -g -DGPU_WARP=$(if $(filter gfx9%,$(archs)),64,32) -fPIC -fvisibility=hidden \
           $(foreach a,$(archs),--offload-arch=$a) -Wall -Wextra -Wno-unused-function -Wno-unused-command-line-argument -Werror
GPULIBS := -lamdhip64 -ldl
else ifeq ($(GPU),emu)
GPUCC   := $(CXX) -x c++ -std=c++17 -O1 -g -DGPU_EMU -DGPU_WARP=$(or $(WARP),32) $(WARN) $(SANFLAG) $(KERNSAN) -fPIC \
           -fvisibility=hidden -ffp-contract=off -Wno-unused-function -Wno-unknown-pragmas
else ifdef GPU
$(error GPU is '$(GPU)', not one of cuda, hip, emu)
endif

ifdef GPU
CPPFLAGS += -DLLAVA_GPU='"$(GPU)"'
LDLIBS  += $(GPULIBS)
endif

FLAGS   := $(CC) $(CXX) $(CPPFLAGS) $(CFLAGS) $(CXXFLAGS) $(GPUCC) $(LDFLAGS) $(LDLIBS)

# The servers are part of the program, not of the library.
SERVE_PKGS := libmicrohttpd
SERVE_LIBS := $(shell pkg-config --libs $(SERVE_PKGS) 2>/dev/null)

.DEFAULT_GOAL := all
SRC     := $(wildcard src/*/*.c src/kern/*/*.c)
OBJ     := $(SRC:src/%.c=$(B)/obj/%.o) $(patsubst src/%.cc,$(B)/obj/%.o,$(wildcard src/*/*.cc))
ifdef GPU
OBJ     += $(patsubst src/%.cu,$(B)/obj/%.o,$(wildcard src/*/*.cu src/*/*/*.cu))
endif
# The emulator's build has all objects of the plain one but two, and compiles only those and the kernels.
ifeq ($(GPU)$(SAN),emu)
H       := build/$(or $(clang),main)
OWN     := $(B)/obj/dev/dev.o $(B)/obj/kern/init.o $(patsubst src/%.cu,$(B)/obj/%.o,$(wildcard src/*/*.cu src/*/*/*.cu))
PLAIN   := $(patsubst $(B)/%,$(H)/%,$(filter-out $(OWN),$(OBJ)))
OBJ     := $(OWN) $(PLAIN)
$(PLAIN): plain_objects
	@:
.PHONY: plain_objects
plain_objects:
	@$(MAKE) --no-print-directory GPU= objects
endif
.PHONY: objects
objects: $(OBJ)
in_room  = $(foreach o,$(OBJ),$(if $(findstring /obj/$1/,$o),$o))
CMDOBJ  := $(call in_room,cmd)
SERVEOBJ := $(call in_room,serve) $(B)/assets.o
LIBOBJ  := $(filter-out $(CMDOBJ) $(SERVEOBJ),$(OBJ))

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
define compile_gpu
	@mkdir -p $(@D)
	@echo '  GPU $<'
	$(Q)$(GPUCC) -Iinclude -Isrc -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
endef
define link
	@mkdir -p $(@D)
	$(Q)$(CXX) $(LDFLAGS) $1 -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LDLIBS) $2
endef

$(B)/llava: $(CMDOBJ) $(B)/libserve.a $(B)/libllava.a
	$(call link,,$(SERVE_LIBS))
$(B)/libllava.a: $(LIBOBJ)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^
$(B)/libserve.a: $(SERVEOBJ)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^
$(B)/libllava.so: $(LIBOBJ) tools/exports.map
	$(call link,-shared -Wl$(comma)-soname$(comma)$(SONAME) -Wl$(comma)--version-script=tools/exports.map)
# The page's files, inside the program; vendor changes only when the libraries that are there do.
$(B)/assets.c: tools/embed $(wildcard src/serve/web/* src/serve/web/*/*) $(B)/vendor | $(B)/
	$(Q)tools/embed $(B)/assets
$(B)/vendor: FORCE | $(B)/
	$(file >$@.new,$(wildcard /usr/share/javascript/marked /usr/share/javascript/highlight.js /usr/share/javascript/katex))
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@
$(B)/assets.o: $(B)/assets.c $(B)/flags
	$(call compile)
$(B)/obj/%.o: src/%.c $(B)/flags
	$(call compile)
$(B)/obj/%.o: src/%.cc $(B)/flags
	@mkdir -p $(@D)
	@echo '  CXX $<'
	$(Q)$(CXX) $(CPPFLAGS) $(CXXFLAGS) -c -o $@ $<
$(B)/obj/%.o: src/%.cu $(B)/flags
	$(call compile_gpu)

$(B)/obj/kern/%.o $(B)/obj64/kern/%.o: CFLAGS += $(KERNSAN)
# Instruction sets live in files of their own; the rest of the program runs on any x86-64.
$(B)/obj/train/augment.o:      CFLAGS += -O3
$(B)/obj/kern/cpu/%_avx2.o:   CFLAGS += -mavx2 -mfma -mf16c -O3
$(B)/obj/kern/cpu/%_avx512.o: CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mavx512vnni -mfma -mf16c -O3
# Comparisons and roots become vectors only where nobody asks for floating-point traps and errno; the results are the same.
$(B)/obj/kern/cpu/adamw8_%.o: CFLAGS += -fno-trapping-math -fno-math-errno

# Is there the GPUs' compiler, and does it know these? Asked when the flags change, before anything is built. Debian's hipcc
# knows AMD's cards; Hygon's are known to the hipcc of their own toolkit, DTK.
known    = $(if $(filter hip,$(GPU)),$(call there,$(HIPCC),HIPCC=/opt/rocm/bin/hipcc) && for a in $1; do \
               if $(HIPCC) -x hip --offload-arch=$$a -fsyntax-only /dev/null 2>&1 | grep -q 'invalid target ID'; then \
                   echo "make: '$(HIPCC)' does not know '$$a'; for Hygon take DTK: make HIPCC=/opt/dtk/bin/hipcc"; exit 1; \
               fi; done,$(if $(filter cuda,$(GPU)),$(call there,$(CUDA)/bin/nvcc,CUDA=/usr/local/cuda) && \
               for a in $1; do n=$${a%a}; \
               $(CUDA)/bin/nvcc --list-gpu-code | grep -qx "sm_$$n" && [ $$n -ge 80 ] || { \
                   echo "make: '$(CUDA)/bin/nvcc' and this source do not both know '$$a': ARCH is 80 or later"; \
                   exit 1; }; done,:))
there    = { command -v $1 >/dev/null || { echo "make: there is no '$1': say where it is, as in make $2"; exit 1; }; }

# Changes only when the flags do: then everything is built again.
$(B)/flags: FORCE | $(B)/
	@pkg-config --exists $(PKGS) $(SERVE_PKGS) || { echo 'make: libraries are missing; `tools/deps build` installs them'; exit 1; }
	$(file >$@.new,$(FLAGS))
	@cmp -s $@.new $@ && rm $@.new || { $(call known,$(archs)) && mv $@.new $@; }
$(B)/:
	@mkdir -p $@
.PHONY: FORCE

# ---- tests: tests/FOLDER/NAME.c is a program of its own

CHECKS  := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/check/*.c))
GRADS   := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/grad/*.c))
FUZZERS := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/fuzz/*.c))
TESTS   := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/unit/*.c tests/golden/*.c)) $(CHECKS) $(GRADS)
ifdef GPU
TESTS   += $(patsubst tests/%.cu,$(B)/tests/%,$(wildcard tests/unit/*.cu))
endif
EXAMPLES := $(patsubst %.c,$(B)/%,$(wildcard examples/*.c))
.PHONY: tests fuzzers examples
tests: $(TESTS) fuzzers ## every test program
fuzzers: $(FUZZERS)
examples: $(EXAMPLES) ## what examples/ holds

$(B)/tests/%.o: tests/%.c $(B)/flags
	$(call compile,-Itests)
$(B)/examples/%.o: examples/%.c $(B)/flags
	$(call compile)
$(B)/tests/%.o: tests/%.cu $(B)/flags
	$(call compile_gpu)
$(TESTS): $(B)/%: $(B)/%.o $(B)/libserve.a $(B)/libllava.a
	$(call link,,-lcmocka $(SERVE_LIBS))
$(EXAMPLES): $(B)/%: $(B)/%.o $(B)/libllava.a
	$(call link)

# What runs on the emulated GPU in check-full, side by side; the longest first.
EMULATED := check/rows unit/step unit/gpu unit/choose unit/dev unit/pager unit/code8
.PHONY: emulated
emulated: $(EMULATED:%=$(B)/tests/%.ran)
$(B)/tests/%.ran: $(B)/tests/% FORCE
	@$< >$<.log 2>&1 || { cat $<.log; exit 1; }

# A fuzz target replays its corpus as a test, unless it is linked with clang's fuzzer (FUZZ=1).
$(B)/tests/fuzz/%.o: CFLAGS += -Wno-missing-prototypes
$(FUZZERS): $(B)/%: $(B)/%.o $(if $(FUZZ),,$(B)/tests/help/replay.o) $(B)/libserve.a $(B)/libllava.a
	$(call link,$(if $(FUZZ),-fsanitize=fuzzer),$(SERVE_LIBS))

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

.PHONY: help deps demo check check-web check-full lint fuzz cuda hip learn train-demo bench format install uninstall clean
help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## /\1\t/p' Makefile | sort | while IFS='	' read -r name text; do \
	    printf '  make %-12s %s\n' "$$name" "$$text"; done

deps: ## installs the Debian packages that are missing: build, tests
	@tools/deps build test

demo: ## installs what is missing, builds, and answers a question about a picture
	@tools/deps build
	@$(BUILD_) all
	build/llava run --model-path models/demo --image-file $(SHOW) --query "What is this?"

check: ## installs what is missing, builds, lints and runs every CPU test, and the engine on an emulated GPU
	@tools/deps build test
	@tests/run --step 'build: $(BUILD_) CC=$(CC) SAN=$(SAN) all tests examples' --step 'lint: tools/lint.py' \
	    --step 'emulated GPU: $(BUILD_) GPU=emu build/emu32/llava' $(B)

NODE_PACKAGES := openai@7 zod@4 ai@7 @ai-sdk/openai@4 @ai-sdk/openai-compatible@3 @langchain/openai@1 @langchain/core@1 \
                 @openai/agents@0
check-web: all ## the page in a browser, a minute of load, and packages that speak OpenAI's API (from npm)
	@tools/deps build test
	@command -v npm >/dev/null || tools/deps web
	@mkdir -p build/node
	@cd build/node && npm install --silent --no-audit --no-fund $(NODE_PACKAGES)
	@LOAD_S=60 OPENAI_NODE=$(abspath build/node) tests/run --only web $(B)

check-full: ## the tests under sanitizers, GPU kernels emulated, and everything built by clang and GPU compilers too
	@tools/deps build test full
	@tests/run --step 'clang: $(BUILD_) CC=$(CLANG) all tests examples' \
	    --step 'emulated GPU, warps of 32: $(BUILD_) GPU=emu WARP=32 SAN=address,undefined emulated' \
	    --step 'emulated GPU, warps of 64: $(BUILD_) GPU=emu WARP=64 SAN=undefined emulated' \
	    --step 'emulated GPU, training: $(BUILD_) GPU=emu WARP=32 SAN=address,undefined build/emu32-san/llava && \
	            LLAVA_BUILD=build/emu32-san /usr/bin/python3 tests/train/device_test.py' \
	    --step 'hip: $(BUILD_) GPU=hip all tests' \
	    --step 'cuda: if [ -x $(CUDA)/bin/nvcc ]; then $(BUILD_) GPU=cuda all tests; else echo "  no nvcc"; fi' \
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

cuda: ## build/cuda/llava, for NVIDIA's GPUs (ARCH=80,89,90a)
	@$(MAKE_) GPU=cuda all
hip: ## build/hip/llava, for GPUs of AMD and Hygon (ARCH=gfx906,gfx90a; gfx928 is Hygon's K100_AI: HIPCC=/opt/dtk/bin/hipcc)
	@$(MAKE_) GPU=hip all

learn: all ## does training teach? models/demo learns drawings by heart, and a new question (5 minutes, npm and network)
	@tools/deps learn
	@tools/learn.py

train-demo: ## a model like models/demo from random weights, examined (20 minutes of a GPU, npm and network)
	@tools/deps learn
	@$(MAKE_) all $(if $(GPU),,$(if $(wildcard $(CUDA)/bin/nvcc),GPU=cuda))
	@tools/train_demo.py --llava $(if $(GPU),$(B),$(if $(wildcard $(CUDA)/bin/nvcc),build/cuda,build))/llava

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
