// A stand-in for the driver's libnvidia-ml.so.1, with GPUs that follow a script.
//
// The file named by STAND_IN_NVML_SCRIPT is read when NVML goes from no user to one; the script's
// clock starts there. One instruction a line, words parted by spaces, names without any:
//
//   gpu NAME UUID              a device; what follows is about it
//   track QUANTITY T V T V ... straight lines from time (s) to value; two values at one time are a
//                              step; constant before the first and after the last
//   tick SECONDS               the energy counter moves only at multiples of this
//   error FUNCTION CODE FROM   FUNCTION ("*": all) answers CODE from time FROM on
//   slow FUNCTION FIRST EVERY SECONDS   call FIRST, and every EVERY-th after it, takes SECONDS; the
//                              answer is taken in the middle
//
// `error` before the first `gpu` holds for the functions that ask about no device.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6 };
enum { VERSION_MISMATCH = 25, UNKNOWN = 999, LIMIT = 64, MOMENTS = 100000, NAME = 96 };
enum { CLOCK_SM = 1, CLOCK_MEMORY = 2 };

typedef struct {
  char quantity[NAME];
  int knots;
  double time[LIMIT], value[LIMIT];
} Track;

typedef struct {
  char function[NAME];
  int code;
  double from;
} Error;

typedef struct {
  char function[NAME];
  int first, every;
  double seconds;
} Slow;

typedef struct {
  char function[NAME];
  int count;
} Calls;

typedef struct {
  int index, tracks, errors, slows, functions, moments;
  char name[NAME], uuid[NAME];
  double tick;
  Track track[LIMIT];
  Error error[LIMIT];
  Slow slow[LIMIT];
  Calls calls[LIMIT];
  double moment[MOMENTS];  // when each answer about power was true, on the monotonic clock
} Gpu;

static Gpu gpus[4], system_wide;
static int gpu_count, users;
static double epoch;

static double monotonic(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void pause_for(double seconds) {
  struct timespec span = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
  while (nanosleep(&span, &span) != 0) {
  }
}

// The script.

static void follow(Gpu** gpu, char* line) {
  char* word = strtok(line, " \n");
  if (word == NULL || word[0] == '#') return;
  if (strcmp(word, "gpu") == 0) {
    *gpu = &gpus[gpu_count];
    (*gpu)->index = gpu_count++;
    strcpy((*gpu)->name, strtok(NULL, " \n"));
    strcpy((*gpu)->uuid, strtok(NULL, " \n"));
  } else if (strcmp(word, "track") == 0) {
    Track* track = &(*gpu)->track[(*gpu)->tracks++];
    strcpy(track->quantity, strtok(NULL, " \n"));
    while ((word = strtok(NULL, " \n")) != NULL) {
      track->time[track->knots] = atof(word);
      track->value[track->knots++] = atof(strtok(NULL, " \n"));
    }
  } else if (strcmp(word, "tick") == 0) {
    (*gpu)->tick = atof(strtok(NULL, " \n"));
  } else if (strcmp(word, "error") == 0) {
    Error* error = &(*gpu)->error[(*gpu)->errors++];
    strcpy(error->function, strtok(NULL, " \n"));
    error->code = atoi(strtok(NULL, " \n"));
    error->from = atof(strtok(NULL, " \n"));
  } else if (strcmp(word, "slow") == 0) {
    Slow* slow = &(*gpu)->slow[(*gpu)->slows++];
    strcpy(slow->function, strtok(NULL, " \n"));
    slow->first = atoi(strtok(NULL, " \n"));
    slow->every = atoi(strtok(NULL, " \n"));
    slow->seconds = atof(strtok(NULL, " \n"));
  } else {
    fprintf(stderr, "stand_in_nvml: no instruction %s\n", word);
    abort();
  }
}

static void read_script(void) {
  static char line[65536];
  memset(gpus, 0, sizeof gpus);
  memset(&system_wide, 0, sizeof system_wide);
  gpu_count = 0;
  Gpu* gpu = &system_wide;
  FILE* script = fopen(getenv("STAND_IN_NVML_SCRIPT"), "r");
  if (script == NULL) abort();
  while (fgets(line, sizeof line, script) != NULL) follow(&gpu, line);
  fclose(script);
}

static const Track* find(const Gpu* gpu, const char* quantity) {
  for (int i = 0; i < gpu->tracks; i++) {
    if (strcmp(gpu->track[i].quantity, quantity) == 0) return &gpu->track[i];
  }
  return NULL;
}

static double value_at(const Gpu* gpu, const char* quantity, double time) {
  const Track* track = find(gpu, quantity);
  if (track == NULL) return 0;
  if (time < track->time[0]) return track->value[0];
  for (int i = 0; i + 1 < track->knots; i++) {
    double span = track->time[i + 1] - track->time[i];
    double into = time - track->time[i];
    if (into < span) {
      return track->value[i] + (track->value[i + 1] - track->value[i]) * into / span;
    }
  }
  return track->value[track->knots - 1];
}

// Joules from the epoch on: a straight line's integral is its middle's value times its length.
static double energy_at(const Gpu* gpu, double time) {
  const Track* track = find(gpu, "power");
  double joules = 0, from = 0;
  for (int i = 0; track != NULL && i <= track->knots && from < time; i++) {
    double to = i < track->knots && track->time[i] < time ? track->time[i] : time;
    if (to > from) joules += (to - from) * value_at(gpu, "power", (from + to) / 2);
    from = to > from ? to : from;
  }
  return joules;
}

// Every call starts here: it is counted, takes its time, and may be told to fail.

static int begin(Gpu* gpu, const char* function, double* moment) {
  if (users == 0) return UNINITIALIZED;
  int which = 0;
  while (which < gpu->functions && strcmp(gpu->calls[which].function, function) != 0) which++;
  if (which == gpu->functions) strcpy(gpu->calls[gpu->functions++].function, function);
  int call = ++gpu->calls[which].count;
  double seconds = 0;
  for (int i = 0; i < gpu->slows; i++) {
    const Slow* slow = &gpu->slow[i];
    int due = call >= slow->first && (call - slow->first) % slow->every == 0;
    if (due && strcmp(slow->function, function) == 0) seconds = slow->seconds;
  }
  if (seconds > 0) pause_for(seconds / 2);
  double now = monotonic();
  if (seconds > 0) pause_for(seconds / 2);
  if (moment != NULL) *moment = now - epoch;
  for (int i = 0; i < gpu->errors; i++) {
    const Error* error = &gpu->error[i];
    int meant = strcmp(error->function, "*") == 0 || strcmp(error->function, function) == 0;
    if (meant && now - epoch >= error->from) return error->code;
  }
  return SUCCESS;
}

static int answer(Gpu* gpu, const char* function, const char* quantity, double* value) {
  double moment;
  int code = begin(gpu, function, &moment);
  if (code == SUCCESS) *value = value_at(gpu, quantity, moment);
  return code;
}

// What a test asks the stand-in itself.

double stand_in_epoch(void) { return epoch; }
int stand_in_users(void) { return users; }
int stand_in_power_moments(int index) { return gpus[index].moments; }
double stand_in_power_moment(int index, int call) { return gpus[index].moment[call]; }

int stand_in_calls(int index, const char* function) {
  for (int i = 0; i < gpus[index].functions; i++) {
    if (strcmp(gpus[index].calls[i].function, function) == 0) return gpus[index].calls[i].count;
  }
  return 0;
}

// NVML, as nvml.h declares it.

int nvmlInitWithFlags(unsigned int flags) {
  (void)flags;
  if (users == 0) {
    read_script();
    epoch = monotonic();
  }
  users++;
  int code = begin(&system_wide, "nvmlInitWithFlags", NULL);
  if (code != SUCCESS) users--;
  return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
  if (users == 0) return UNINITIALIZED;
  users--;
  return SUCCESS;
}

const char* nvmlErrorString(int code) {
  return code == UNKNOWN ? "Unknown Error" : "an error of the stand-in";
}

int nvmlSystemGetDriverVersion(char* version, unsigned int length) {
  snprintf(version, length, "000.00");
  return begin(&system_wide, "nvmlSystemGetDriverVersion", NULL);
}

int nvmlDeviceGetCount_v2(unsigned int* count) {
  *count = (unsigned int)gpu_count;
  return begin(&system_wide, "nvmlDeviceGetCount_v2", NULL);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Gpu** gpu) {
  if (index >= (unsigned int)gpu_count) return INVALID_ARGUMENT;
  *gpu = &gpus[index];
  return begin(*gpu, "nvmlDeviceGetHandleByIndex_v2", NULL);
}

int nvmlDeviceGetHandleByUUID(const char* uuid, Gpu** gpu) {
  for (int i = 0; i < gpu_count; i++) {
    *gpu = &gpus[i];
    if (strcmp(gpus[i].uuid, uuid) == 0) return begin(*gpu, "nvmlDeviceGetHandleByUUID", NULL);
  }
  return NOT_FOUND;
}

int nvmlDeviceGetIndex(Gpu* gpu, unsigned int* index) {
  *index = (unsigned int)gpu->index;
  return begin(gpu, "nvmlDeviceGetIndex", NULL);
}

int nvmlDeviceGetName(Gpu* gpu, char* name, unsigned int length) {
  snprintf(name, length, "%s", gpu->name);
  return begin(gpu, "nvmlDeviceGetName", NULL);
}

int nvmlDeviceGetUUID(Gpu* gpu, char* uuid, unsigned int length) {
  snprintf(uuid, length, "%s", gpu->uuid);
  return begin(gpu, "nvmlDeviceGetUUID", NULL);
}

int nvmlDeviceGetPowerUsage(Gpu* gpu, unsigned int* milliwatts) {
  double moment;
  int code = begin(gpu, "nvmlDeviceGetPowerUsage", &moment);
  if (code != SUCCESS) return code;
  *milliwatts = (unsigned int)(1000 * value_at(gpu, "power", moment) + 0.5);
  if (gpu->moments < MOMENTS) gpu->moment[gpu->moments++] = epoch + moment;
  return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(Gpu* gpu, unsigned long long* millijoules) {
  double moment;
  int code = begin(gpu, "nvmlDeviceGetTotalEnergyConsumption", &moment);
  if (gpu->tick > 0) moment = gpu->tick * (double)(long long)(moment / gpu->tick);
  // It counts since the driver was loaded: it never starts from nothing.
  *millijoules = 1000000000000ull + (unsigned long long)(1000 * energy_at(gpu, moment));
  return code;
}

int nvmlDeviceGetUtilizationRates(Gpu* gpu, unsigned int rates[2]) {
  double percent[2] = {0, 0};
  int code = answer(gpu, "nvmlDeviceGetUtilizationRates", "gpu_utilisation", &percent[0]);
  percent[1] = value_at(gpu, "memory_utilisation", monotonic() - epoch);
  for (int i = 0; i < 2; i++) rates[i] = (unsigned int)percent[i];
  return code;
}

int nvmlDeviceGetMemoryInfo(Gpu* gpu, unsigned long long info[3]) {
  double used = 0, reserved = value_at(gpu, "memory_reserved", 0);
  int code = answer(gpu, "nvmlDeviceGetMemoryInfo", "memory_used", &used);
  info[0] = 1ull << 36;
  info[2] = (unsigned long long)(used + reserved);
  info[1] = info[0] - info[2];
  return code;
}

typedef struct {
  unsigned int version;
  unsigned long long total, reserved, free, used;
} MemoryV2;

int nvmlDeviceGetMemoryInfo_v2(Gpu* gpu, MemoryV2* info) {
  if (info->version != 0x02000028) return VERSION_MISMATCH;
  double used = 0;
  int code = answer(gpu, "nvmlDeviceGetMemoryInfo_v2", "memory_used", &used);
  info->total = 1ull << 36;
  info->reserved = (unsigned long long)value_at(gpu, "memory_reserved", 0);
  info->used = (unsigned long long)used;
  info->free = info->total - info->reserved - info->used;
  return code;
}

int nvmlDeviceGetClockInfo(Gpu* gpu, int type, unsigned int* megahertz) {
  if (type != CLOCK_SM && type != CLOCK_MEMORY) return INVALID_ARGUMENT;
  double value = 0;
  const char* quantity = type == CLOCK_SM ? "sm_clock" : "memory_clock";
  int code = answer(gpu, "nvmlDeviceGetClockInfo", quantity, &value);
  *megahertz = (unsigned int)value;
  return code;
}

int nvmlDeviceGetTemperature(Gpu* gpu, int sensor, unsigned int* celsius) {
  double value = 0;
  int code = answer(gpu, "nvmlDeviceGetTemperature", "temperature", &value);
  *celsius = (unsigned int)value;
  return sensor == 0 ? code : INVALID_ARGUMENT;
}

typedef struct {
  unsigned int version;
  int sensor, celsius;
} TemperatureV1;

int nvmlDeviceGetTemperatureV(Gpu* gpu, TemperatureV1* temperature) {
  if (temperature->version != 0x0100000C) return VERSION_MISMATCH;
  double value = 0;
  int code = answer(gpu, "nvmlDeviceGetTemperatureV", "temperature", &value);
  temperature->celsius = (int)value;
  return temperature->sensor == 0 ? code : INVALID_ARGUMENT;
}

int nvmlDeviceGetCurrentClocksEventReasons(Gpu* gpu, unsigned long long* reasons) {
  double value = 0;
  int code = answer(gpu, "nvmlDeviceGetCurrentClocksEventReasons", "reasons", &value);
  *reasons = (unsigned long long)value;
  return code;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Gpu* gpu, unsigned long long* reasons) {
  double value = 0;
  int code = answer(gpu, "nvmlDeviceGetCurrentClocksThrottleReasons", "reasons", &value);
  *reasons = (unsigned long long)value;
  return code;
}
